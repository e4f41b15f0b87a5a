"""Conversion of a 0.5 GB model both ways, against Megatron-Bridge: whole processes, imports included."""

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from convert import DAVINCI, Run, run, write_model
from measure import alternate, median_of, save

SMALL = {
    "hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14, "num_key_value_heads": 2,
    "num_hidden_layers": 13, "vocab_size": 65536,
}  # fmt: skip
PEER = Path(__file__).with_name("bridge_peer.py")


def facts_of(runs: dict[str, list[Run]]) -> dict[str, Any]:
    """Medians, and what they mean."""
    medians = {side: median_of([each.seconds for each in of_side]) for side, of_side in runs.items()}
    return {
        "seconds": {side: [each.seconds for each in of_side] for side, of_side in runs.items()},
        "speed_over_bridge": medians["bridge"] / medians["ours"],
        "most_anonymous_megabytes": {
            side: max(each.anonymous for each in of_side) / 1e6 for side, of_side in runs.items()
        },
    }


def main() -> None:
    """Write results/convert_bridge.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bridge-python", required=True, help="the interpreter of Bridge's environment")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    peer = [arguments.bridge_python, PEER]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_model(folder / "hf", **SMALL)
        hf, ours, theirs = folder / "hf", folder / "ours", folder / "theirs"
        there = {
            "ours": partial(run, [*DAVINCI, "hf-to-megatron", hf, ours], ours),
            "bridge": partial(run, [*peer, "to-megatron", hf, theirs], theirs),
        }
        back = {
            "ours": partial(run, [*DAVINCI, "megatron-to-hf", ours, folder / "back"], folder / "back"),
            "bridge": partial(run, [*peer, "to-hf", theirs, hf, folder / "theirs-back"], folder / "theirs-back"),
        }
        facts = {
            "gigabytes": size / 1e9,
            "hf-to-megatron": facts_of(alternate(there, arguments.repeats)),
            "megatron-to-hf": facts_of(alternate(back, arguments.repeats)),
        }
        # Both have the same weights, and each can be read by us
        for one in (ours, theirs, folder / "back", folder / "theirs-back"):
            run([*DAVINCI, "verify", hf, one, "--model", str(hf)], folder / "nothing")
    save("convert_bridge", facts, ["torch", "megatron-core"])


if __name__ == "__main__":
    main()
