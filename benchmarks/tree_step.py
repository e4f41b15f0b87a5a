"""Forward and backward of RMT's loss on the CPU: a document with its rollouts as one tree, against sequences.

The peer has the same model and kernels. It takes the document by itself, and for each position the G responses as G
sequences in one micro-batch, packed without padding. Layers have SmolLM2-135M's shape; where there are fewer than its
30, the vocabulary shrinks with them, so that layers and output layer share the time as they do in the whole model.
"""

import argparse
import ctypes
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import alternate, median_of, save
from torch import Tensor
from train_step import MODEL, recipe_without_data

from megatron_davinci.config.objectives import Rmt
from megatron_davinci.config.rollouts import RolloutDirectory
from megatron_davinci.core.attention.packed import PackedSegments
from megatron_davinci.core.build_trainer import build_trainer
from megatron_davinci.core.counts import BatchCounts
from megatron_davinci.core.device import synchronize
from megatron_davinci.core.gpt import LabelScores
from megatron_davinci.core.groups import model_parallel, world
from megatron_davinci.core.next_token import weighted_loss
from megatron_davinci.core.step import GlobalBatch, Trainer
from megatron_davinci.models.config import load_model_config
from megatron_davinci.rl.policy_step import REPORTS, policy_forward_step
from megatron_davinci.rl.tree import Branch, ResponseRows, Tree, pack_row
from megatron_davinci.testing.gather import gather_gradients

LAYERS = 30  # of the whole model
RESPONSES, RESPONSE_TOKENS, INSTRUCTION_TOKENS = 8, 187, 60
SIZES = {"document 512, K=4": (512, 4), "document 2048, K=8": (2048, 8), "document 512, K=1": (512, 1)}
COUNTS, WEIGHT = BatchCounts(0, 0, 0, 0, {}), 1e-3
Pieces = list[tuple[Tensor, Tensor, Tensor]]  # tokens, rows, labels


def random_tree(vocabulary: int, document: int, positions: int) -> Tree:
    """Positions spread evenly, each with G responses of R tokens."""
    g = torch.Generator().manual_seed(0)

    def draw(count: int) -> Tensor:
        return torch.randint(0, vocabulary, (count,), generator=g)

    places = [document * (number + 1) // (positions + 1) for number in range(positions)]
    weights = torch.full((document,), WEIGHT)
    weights[places] = 0.0
    instruction = draw(INSTRUCTION_TOKENS)
    branches = []
    for place in places:
        written = [draw(RESPONSE_TOKENS) for _ in range(RESPONSES)]
        responses = [ResponseRows(ids, torch.zeros(len(ids)), 1.0, WEIGHT) for ids in written]
        branches.append(Branch(place, instruction, responses))
    return Tree(draw(document), weights, branches)


def as_tree(tree: Tree, device: torch.device) -> list[GlobalBatch]:
    """One micro-batch."""
    batch = pack_row([tree], tree.num_rows).to(device)
    return [
        GlobalBatch(
            partial(policy_forward_step, Rmt(kind="rmt", rollouts=RolloutDirectory(directory="-"))),
            [batch],
            [tree.num_rows],
            COUNTS,
            REPORTS,
        )
    ]


def as_sequences(tree: Tree, device: torch.device) -> list[GlobalBatch]:
    """The document, then a micro-batch for each position: their lengths differ, so each is a pass of its own."""
    labels = tree.label_weights[1:].nonzero()[:, 0] + 1
    found = [_packed([(tree.prefix, labels - 1, tree.prefix[labels])], device)]
    for branch in tree.branches:
        prompt = torch.cat([tree.prefix[: branch.position], branch.instruction])
        pieces = []
        for response in branch.responses:
            rows = torch.arange(len(prompt) - 1, len(prompt) + len(response.tokens) - 1)
            pieces.append((torch.cat([prompt, response.tokens]), rows, response.tokens))
        found.append(_packed(pieces, device))
    return found


def _packed(pieces: Pieces, device: torch.device) -> GlobalBatch:
    starts = [0]
    for tokens, _, _ in pieces:
        starts.append(starts[-1] + len(tokens))
    tokens = torch.cat([tokens for tokens, _, _ in pieces])
    rows = torch.cat([start + rows for start, (_, rows, _) in zip(starts[:-1], pieces, strict=True)])
    labels = torch.cat([labels for _, _, labels in pieces])
    moved = (x.to(device) for x in (tokens[None], rows, labels, torch.full(rows.shape, WEIGHT)))
    return GlobalBatch(_forward, [(PackedSegments.of(starts, device), *moved)], [len(tokens)], COUNTS)


def step(trainer: Trainer, works: list[GlobalBatch]) -> float:
    """Seconds of forward and backward; gradients add up in the buffers."""
    trainer.zero_gradients()
    synchronize()
    start = time.perf_counter()
    for work in works:
        trainer.add_gradients(work)
    synchronize()
    return time.perf_counter() - start


def _forward(batches: Any, chunk: Any) -> tuple[Any, Any]:
    segments, tokens, rows, labels, weights = next(batches)
    scores = chunk(tokens, None, None, labels=LabelScores(rows, labels), packed_seq_params=segments)
    return scores, partial(weighted_loss, weights)


@contextmanager
def peak_memory() -> Iterator[Callable[[], float]]:
    """Megabytes that the block held at most beyond what was held before."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system: it would hide what the block takes
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before = _status("VmRSS")
    yield lambda: (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    """Kilobytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def compare(
    trainer: Trainer, vocabulary: int, document: int, positions: int, repeats: int, limit: float = 1e-4
) -> dict[str, Any]:
    """Seconds and peak memory (of the process) of both sides, whose gradients must agree to `limit`."""
    tree = random_tree(vocabulary, document, positions)
    sides = {"tree": as_tree(tree, trainer.device), "sequences": as_sequences(tree, trainer.device)}
    gradients, peaks = {}, {}
    for side, works in sides.items():
        with peak_memory() as peak:
            step(trainer, works)
        peaks[side] = peak()
        gradients[side] = gather_gradients(trainer)
    worst = max(
        float((gradients["tree"][name] - other).abs().max() / other.abs().max())
        for name, other in gradients["sequences"].items()
    )
    assert worst < limit, worst
    runs: dict[str, Callable[[], float]] = {side: partial(step, trainer, works) for side, works in sides.items()}
    seconds = alternate(runs, repeats)
    medians = {side: median_of(times) for side, times in seconds.items()}
    return {
        "rows": {side: sum(sum(work.widths) for work in works) for side, works in sides.items()},
        "worst_gradient_difference": worst,
        "seconds": seconds,
        "speed_over_sequences": medians["sequences"] / medians["tree"],
        "peak_megabytes_above_the_model": peaks,
    }


def main() -> None:
    """Write results/tree_step_N_layers.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--sizes", nargs="*", choices=SIZES, default=list(SIZES))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, world():
        vocabulary = MODEL["vocab_size"] * arguments.layers // (LAYERS * 128) * 128
        config = {**MODEL, "num_hidden_layers": arguments.layers, "vocab_size": vocabulary}
        (Path(name) / "config.json").write_text(json.dumps(config))
        recipe = recipe_without_data(name)
        with model_parallel(recipe.stage(0), seed=0) as device:
            trainer = build_trainer(recipe, recipe.stage(0), load_model_config(name), device)
            facts = {size: compare(trainer, vocabulary, *SIZES[size], arguments.repeats) for size in arguments.sizes}
    save(f"tree_step_{arguments.layers}_layers", {"model": config, **facts}, ["torch", "megatron-core"])


if __name__ == "__main__":
    main()
