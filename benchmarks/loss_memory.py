"""Memory and time of the loss over a large vocabulary: chunks of rows against all logits at once.

Forward and backward from hidden states to the gradients of hidden states and output layer, each side in a process of
its own; peak memory is what the process held beyond its inputs.
"""

import argparse
import subprocess
import sys
from functools import partial

from measure import alternate, median_of, save

VOCABULARY = 152_064  # Qwen2.5
HIDDEN = 896  # Qwen2.5-0.5B
# A program: prints seconds, and the peak beyond the inputs, in bytes.
PROGRAM = """
import sys, time, torch
from megatron_davinci.core.losses.token_scores import score_tokens
rows, vocabulary, hidden, side = *map(int, sys.argv[1:4]), sys.argv[4]
torch.manual_seed(0)
states = torch.randn(rows, hidden, requires_grad=True)
weight = (torch.randn(vocabulary, hidden) * 0.02).requires_grad_()
labels = torch.randint(0, vocabulary, (rows,))
def peak(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024
before = peak("VmRSS")
start = time.perf_counter()
if side == "chunked":
    loss = -score_tokens(states, weight, labels)[0].mean()
else:
    loss = torch.nn.functional.cross_entropy((states @ weight.t()).float(), labels)
loss.backward()
print(time.perf_counter() - start, peak("VmHWM") - before, float(loss), float(weight.grad.abs().sum()))
"""


def measure(rows: int, side: str) -> dict[str, float]:
    """One process: seconds, bytes, and two numbers that both sides must agree on."""
    command = [sys.executable, "-c", PROGRAM, str(rows), str(VOCABULARY), str(HIDDEN), side]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(zip(("seconds", "peak_bytes", "loss", "gradient"), map(float, out.split()), strict=True))


def main() -> None:
    """Write results/loss_memory.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--more-rows", type=int, default=16384)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    sides = {side: partial(measure, arguments.rows, side) for side in ("chunked", "plain")}
    found = alternate(sides, arguments.repeats)
    for key in ("loss", "gradient"):
        one, other = (found[side][0][key] for side in sides)
        assert abs(one / other - 1) < 1e-5, (key, one, other)
    more = measure(arguments.more_rows, "chunked")
    middle = {
        side: {key: median_of([r[key] for r in runs]) for key in ("seconds", "peak_bytes")}
        for side, runs in found.items()
    }
    facts = {
        "vocabulary": VOCABULARY,
        "hidden_size": HIDDEN,
        "rows": arguments.rows,
        "runs": found,
        "median": middle,
        "memory_of_plain_over_chunked": middle["plain"]["peak_bytes"] / middle["chunked"]["peak_bytes"],
        "speed_over_plain": middle["plain"]["seconds"] / middle["chunked"]["seconds"],
        "chunked_at_more_rows": {"rows": arguments.more_rows, **more},
    }
    save("loss_memory", facts, ["torch"])


if __name__ == "__main__":
    main()
