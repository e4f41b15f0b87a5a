"""Forward and backward of RMT's loss on the CPU: a document with its rollouts as one tree, against sequences.

The peer has the same model and kernels. It takes the document by itself, and for each position the G responses as G
sequences in one micro-batch, packed without padding. Layers have SmolLM2-135M's shape.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import alternate, median_of, save
from torch import Tensor
from train_step import MODEL

from megatron_davinci.attention.packed import PackedSegments
from megatron_davinci.attention.tree import Call, TreeSegments
from megatron_davinci.models.config import load_model_config
from megatron_davinci.models.gpt import Predictions
from megatron_davinci.recipe import parse_recipe
from megatron_davinci.rmt.tree import Branch, Tree, lay_out
from megatron_davinci.testing.gather import gather_gradients
from megatron_davinci.train.loop import build_trainer
from megatron_davinci.train.parallel import model_parallel, world
from megatron_davinci.train.step import Trainer, run_schedule, weighted_loss

RESPONSES, RESPONSE_TOKENS, INSTRUCTION_TOKENS = 8, 187, 60
SIZES = {"document 512, K=4": (512, 4), "document 2048, K=8": (2048, 8), "document 512, K=1": (512, 1)}
Batch = tuple[Tensor, Any, Tensor, Tensor, Tensor]  # tokens, segments, rows, labels, weights


def random_tree(document: int, positions: int) -> Tree:
    """Positions spread evenly, each with G responses of R tokens."""
    g = torch.Generator().manual_seed(0)

    def draw(count: int) -> Tensor:
        return torch.randint(0, MODEL["vocab_size"], (count,), generator=g)

    places = [document * (number + 1) // (positions + 1) for number in range(positions)]
    predicted = torch.ones(document, dtype=torch.bool)
    predicted[places] = False
    responses = [[draw(RESPONSE_TOKENS) for _ in range(RESPONSES)] for _ in places]
    instruction = draw(INSTRUCTION_TOKENS)
    return Tree(draw(document), predicted, [Branch(p, instruction, r) for p, r in zip(places, responses, strict=True)])


def as_tree(tree: Tree) -> list[Batch]:
    """One micro-batch."""
    batch = lay_out([tree], tree.num_rows)
    segments = TreeSegments(position_ids=batch.position_ids, calls=[Call(c.rows, c.prefix) for c in batch.calls])
    rows, labels = (torch.cat([getattr(batch.ntp, name), getattr(batch.rl, name)]) for name in ("rows", "labels"))
    return [(batch.tokens[None], segments, rows, labels, torch.full(rows.shape, 1e-3))]


def as_sequences(tree: Tree) -> list[Batch]:
    """The document, then a micro-batch for each position."""
    labels = tree.predicted[1:].nonzero()[:, 0] + 1
    found = [_packed([(tree.trunk, labels - 1, tree.trunk[labels])])]
    for branch in tree.branches:
        prompt = torch.cat([tree.trunk[: branch.position], branch.instruction])
        pieces = []
        for response in branch.responses:
            rows = torch.arange(len(prompt) - 1, len(prompt) + len(response) - 1)
            pieces.append((torch.cat([prompt, response]), rows, response))
        found.append(_packed(pieces))
    return found


def _packed(pieces: list[tuple[Tensor, Tensor, Tensor]]) -> Batch:
    starts = [0]
    for tokens, _, _ in pieces:
        starts.append(starts[-1] + len(tokens))
    tokens = torch.cat([tokens for tokens, _, _ in pieces])
    rows = torch.cat([start + rows for start, (_, rows, _) in zip(starts[:-1], pieces, strict=True)])
    labels = torch.cat([labels for _, _, labels in pieces])
    segments = PackedSegments.of(starts, torch.device("cpu"))
    return tokens[None], segments, rows, labels, torch.full(rows.shape, 1e-3)


def step(trainer: Trainer, batches: list[Batch]) -> float:
    """Seconds of forward and backward over all micro-batches."""
    trainer.zero_gradients()
    start = time.perf_counter()
    for batch in batches:  # their lengths differ, which one schedule's call would not allow
        run_schedule(trainer.chunks, _forward, [batch], batch[0].size(1))
    return time.perf_counter() - start


def _forward(batches: Any, chunk: Any) -> tuple[Any, Any]:
    tokens, segments, rows, labels, weights = next(batches)
    scores = chunk(tokens, None, None, labels=Predictions(rows, labels), packed_seq_params=segments)
    return scores, partial(weighted_loss, weights)


def compare(trainer: Trainer, document: int, positions: int, repeats: int) -> dict[str, Any]:
    """Seconds of both sides, whose gradients must agree."""
    tree = random_tree(document, positions)
    sides = {"tree": as_tree(tree), "sequences": as_sequences(tree)}
    gradients = {}
    for side, batches in sides.items():
        step(trainer, batches)
        gradients[side] = gather_gradients(trainer)
    worst = max(
        float((gradients["tree"][name] - other).abs().max() / other.abs().max())
        for name, other in gradients["sequences"].items()
    )
    assert worst < 1e-4, worst
    runs: dict[str, Callable[[], float]] = {side: partial(step, trainer, b) for side, b in sides.items()}
    seconds = alternate(runs, repeats)
    medians = {side: median_of(times) for side, times in seconds.items()}
    rows = {side: sum(batch[0].size(1) for batch in batches) for side, batches in sides.items()}
    return {
        "rows": rows,
        "worst_gradient_difference": worst,
        "seconds": seconds,
        "speed_over_sequences": medians["sequences"] / medians["tree"],
    }


def main() -> None:
    """Write results/tree_step.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=4)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, world():
        config = {**MODEL, "num_hidden_layers": arguments.layers}
        (Path(name) / "config.json").write_text(json.dumps(config))
        recipe = parse_recipe(
            {
                "model": name,
                "data": {"seq_length": 8192, "stages": [{"name": "-", "blend": [{"corpus": "-"}]}]},
                "batch": {"global_size": 1},
                "schedule": {"lr": 1e-5},
                "checkpoint": {"dir": name},
            }
        )
        with model_parallel(recipe.stage(0), seed=0) as device:
            trainer = build_trainer(recipe, recipe.stage(0), load_model_config(name), device)
            facts = {size: compare(trainer, *numbers, arguments.repeats) for size, numbers in SIZES.items()}
    save("tree_step", {"model": config, **facts}, ["torch", "megatron-core"])


if __name__ == "__main__":
    main()
