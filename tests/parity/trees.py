"""What each rank runs in the tests of the tree inside Megatron: trees, and the same responses one by one."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from layouts import as_arrays
from megatron.core import parallel_state
from torch import Tensor

from megatron_davinci.attention.packed import PackedSegments
from megatron_davinci.attention.tree import Call, TreeSegments
from megatron_davinci.models.config import load_model_config
from megatron_davinci.models.gpt import Predictions
from megatron_davinci.recipe import parse_recipe
from megatron_davinci.rmt.tree import Branch, Tree, lay_out
from megatron_davinci.testing.gather import gather_gradients
from megatron_davinci.train.loop import build_trainer
from megatron_davinci.train.parallel import model_parallel, world
from megatron_davinci.train.step import Trainer, global_loss, run_schedule, weighted_loss

WIDTH, VOCABULARY, NTP_WEIGHT = 160, 256, 0.1
Batch = tuple[Tensor, Tensor, Any, Tensor, Tensor, Tensor]  # tokens, positions, segments, rows, labels, weights
# (trunk, [(position, instruction, responses)]): ragged, an instruction of none, the whole trunk as prefix, no branch,
# one response, an empty one
SHAPES: list[tuple[int, list[tuple[int, int, list[int]]]]] = [
    (40, [(9, 4, [5, 7, 3]), (25, 4, [6, 6, 2])]),
    (33, [(1, 3, [4, 2]), (12, 0, [5, 1, 8]), (33, 2, [3, 3])]),
    (50, []),
    (21, [(20, 5, [9]), (3, 2, [0, 4])]),
]


def measure(recipes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per recipe: loss and gradients of the trees, and of one sequence per response."""
    found = []
    with world():
        for values in recipes:
            recipe = parse_recipe(values)
            stage = recipe.stage(0)
            with model_parallel(stage, recipe.seed) as device:
                trainer = build_trainer(recipe, stage, load_model_config(recipe.model), device)
                rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
                trees = random_trees()[rank::size]
                found.append({"tree": _run(trainer, [_shared(*tree) for tree in trees])})
                found[-1]["alone"] = _run(trainer, [_alone(*tree) for tree in trees])
    return found


def random_trees() -> list[tuple[Tree, list[float]]]:
    """Trees and the weight of each response's tokens."""
    g = torch.Generator().manual_seed(7)
    trees = []

    def draw(count: int) -> Tensor:
        return torch.randint(1, VOCABULARY, (count,), generator=g)

    for trunk, shapes in SHAPES:
        predicted = torch.ones(trunk, dtype=torch.bool)
        predicted[[p for p, _, _ in shapes if p < trunk]] = False
        branches = [Branch(p, draw(n), [draw(r) for r in lengths]) for p, n, lengths in shapes]
        weights = torch.randn(sum(len(lengths) for _, _, lengths in shapes), generator=g) / 8
        trees.append((Tree(draw(trunk), predicted, branches), weights.tolist()))
    return trees


def _shared(tree: Tree, weights: Sequence[float]) -> Batch:
    batch = lay_out([tree], WIDTH)
    calls = [Call(call.rows, call.prefix) for call in batch.calls]
    segments = TreeSegments(position_ids=batch.position_ids, calls=calls)
    rows, labels = (torch.cat([getattr(batch.ntp, name), getattr(batch.rl, name)]) for name in ("rows", "labels"))
    of_responses = torch.tensor([*weights, 0.0])[batch.rl.group]
    all_weights = torch.cat([torch.full(batch.ntp.rows.shape, NTP_WEIGHT), of_responses])
    return batch.tokens[None], batch.position_ids[None], segments, rows, labels, all_weights


def _alone(tree: Tree, weights: Sequence[float]) -> Batch:
    """The document and every response as a packed sequence of its own."""
    labels = tree.predicted[1:].nonzero()[:, 0] + 1
    pieces = [(tree.trunk, labels - 1, tree.trunk[labels], NTP_WEIGHT)]
    left = iter(weights)
    for branch in tree.branches:
        prompt = torch.cat([tree.trunk[: branch.position], branch.instruction])
        for response in branch.responses:
            rows = torch.arange(len(prompt) - 1, len(prompt) + len(response) - 1)
            pieces.append((torch.cat([prompt, response]), rows, response, next(left)))
    boundaries = [0, *accumulate(len(tokens) for tokens, _, _, _ in pieces)]
    width = 4 * WIDTH
    tokens = torch.cat(
        [*(tokens for tokens, _, _, _ in pieces), torch.zeros(width - boundaries[-1], dtype=torch.int64)]
    )
    rows = torch.cat([start + rows for start, (_, rows, _, _) in zip(boundaries, pieces)])  # noqa: B905  # one more
    all_weights = torch.cat([torch.full(rows.shape, weight) for _, rows, _, weight in pieces])
    segments = PackedSegments.of([*boundaries, width], torch.device("cpu"))
    labels = torch.cat([labels for _, _, labels, _ in pieces])
    return tokens[None], torch.arange(width)[None], segments, rows, labels, all_weights


def _run(trainer: Trainer, batches: list[Batch]) -> dict[str, Any]:
    trainer.zero_gradients()
    losses = run_schedule(trainer.chunks, _forward, batches, batches[0][0].size(1))
    loss = global_loss([entry["loss"] for entry in losses], trainer.device)
    return {"loss": loss, "gradients": as_arrays(gather_gradients(trainer))}


def _forward(batches: Iterator[Batch], chunk: Any) -> tuple[Any, Any]:
    tokens, positions, segments, rows, labels, weights = next(batches)
    scores = chunk(tokens, positions, None, labels=Predictions(rows, labels), packed_seq_params=segments)
    return scores, partial(weighted_loss, weights)
