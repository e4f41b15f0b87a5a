"""What each rank runs in the tests of the tree inside Megatron: trees, and the same responses one by one."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from layouts import ADAM_AS_SGD, as_arrays
from planted import plant
from torch import Tensor

from megatron_davinci.config import parse_recipe
from megatron_davinci.config.objectives import Rmt
from megatron_davinci.core.attention.packed import PackedSegments
from megatron_davinci.core.build_trainer import build_trainer
from megatron_davinci.core.counts import BatchCounts
from megatron_davinci.core.gpt import LabelScores
from megatron_davinci.core.groups import data_rank, model_parallel, world
from megatron_davinci.core.next_token import weighted_loss
from megatron_davinci.core.optimizer import build_optimizer, set_hyperparameters
from megatron_davinci.core.step import GlobalBatch
from megatron_davinci.data.rows import RowRules
from megatron_davinci.models.config import load_model_config
from megatron_davinci.rl.batch import TreeRow, deal_trees
from megatron_davinci.rl.policy_step import REPORTS, policy_forward_step
from megatron_davinci.rl.tree import Branch, ResponseRows, Tree, pack_row
from megatron_davinci.testing.gather import gather_gradients, gather_parameters

WIDTH, SPLIT, VOCABULARY, NTP_WEIGHT, STEPS, LR = 160, 72, 256, 0.1, 3, 0.1
COUNTS = BatchCounts(0, 0, 0, 0, {})
# (trunk, [(position, instruction, responses)]): ragged, an instruction of none, the whole trunk as prefix, no branch,
# one response, an empty one, one position, the first one, a trunk of one token
SHAPES: list[tuple[int, list[tuple[int, int, list[int]]]]] = [
    (40, [(9, 4, [5, 7, 3]), (25, 4, [6, 6, 2])]),
    (33, [(1, 3, [4, 2]), (12, 0, [5, 1, 8]), (33, 2, [3, 3])]),
    (50, []),
    (21, [(20, 5, [9]), (3, 2, [0, 4])]),
    (17, [(0, 3, [4, 2])]),
    (1, [(0, 2, [3]), (1, 1, [2, 2])]),
]


def measure(
    recipes: list[dict[str, Any]], paths: Sequence[str] = ("tree", "unshared", "alone")
) -> list[dict[str, Any]]:
    """Per recipe and path: loss and gradients, and weights and gradients after some steps of SGD.

    tree, split: as training does it, whole and in parts; chains: `tree: false`; alone: a packed sequence for each
    response, put together here. Another name is a fault to be planted into the tree.
    """
    found = []
    with world():
        for values in recipes:
            with model_parallel(parse_recipe(values).stage(0), seed=0) as device:
                found.append({path: _measure(values, path, device) for path in paths})
    return found


def _measure(values: dict[str, Any], path: str, device: torch.device) -> dict[str, Any]:
    recipe = parse_recipe({**values, "megatron": {**values["megatron"], **ADAM_AS_SGD}})
    stage = recipe.stage(0)
    trainer = build_trainer(recipe, stage, load_model_config(recipe.model), device)
    rank, size = data_rank()
    build = _alone if path == "alone" else partial(_product, path)
    work = build(random_trees(), rank, size, device)
    with plant(path, trainer) if path not in ("tree", "split", "unshared", "alone") else nullcontext():
        loss = trainer.gradients(work)["loss"]
        gradients = as_arrays(gather_gradients(trainer))
        optimizer = build_optimizer(stage.megatron, trainer.chunks)
        set_hyperparameters(optimizer, LR * ADAM_AS_SGD["adam_eps"])
        for _ in range(STEPS):
            trainer.step(optimizer, work)
        weights = as_arrays(gather_parameters(trainer, lambda p: p.data))
        trainer.gradients(work)
        later = as_arrays(gather_gradients(trainer))
    return {"loss": loss, "gradients": gradients, "weights": weights, "later gradients": later}


def random_trees() -> list[Tree]:
    """Responses have advantages and weights of either size, the NTP loss leaves out what is asked for."""
    g = torch.Generator().manual_seed(7)
    trees = []

    def draw(count: int) -> Tensor:
        return torch.randint(1, VOCABULARY, (count,), generator=g)

    def respond(count: int) -> ResponseRows:
        advantage, weight = torch.randn(2, generator=g).tolist()
        return ResponseRows(draw(count), -torch.rand(count, generator=g), advantage, abs(weight) / 8)

    for prefix, shapes in SHAPES:
        weights = torch.full((prefix,), NTP_WEIGHT)
        weights[[p for p, _, _ in shapes if p < prefix]] = 0.0
        branches = [Branch(p, draw(n), [respond(r) for r in lengths]) for p, n, lengths in shapes]
        trees.append(Tree(draw(prefix), weights, branches))
    return trees


def _product(path: str, trees: list[Tree], rank: int, size: int, device: torch.device) -> GlobalBatch:
    """A row for each tree; or trees split and packed into rows."""
    options = Rmt(kind="rmt", rollouts="-", share_prefix=path != "unshared")
    if path in ("split", "unshared"):
        mine = deal_trees(trees, RowRules(SPLIT, 1, 4, 4, 1, 1), options.share_prefix, size)[rank]
    else:
        mine = [TreeRow([tree], WIDTH) for tree in trees[rank::size]]
    batches = [pack_row(row.trees, row.width).to(device) for row in mine]
    widths = [row.width for row in mine]
    return GlobalBatch(partial(policy_forward_step, options), batches, widths, COUNTS, REPORTS)


def _alone(trees: list[Tree], rank: int, size: int, device: torch.device) -> GlobalBatch:
    """The document and every response as a packed sequence of its own; a token weighs advantage times weight."""
    batches = []
    for tree in trees[rank::size]:
        labels = tree.label_weights[1:].nonzero()[:, 0] + 1
        pieces = [(tree.prefix, labels - 1, tree.prefix[labels], NTP_WEIGHT)]
        for branch in tree.branches:
            prompt = torch.cat([tree.prefix[: branch.position], branch.instruction])
            for response in branch.responses:
                rows = torch.arange(len(prompt) - 1, len(prompt) + len(response.tokens) - 1)
                weight = response.advantage * response.weight
                pieces.append((torch.cat([prompt, response.tokens]), rows, response.tokens, weight))
        batches.append(_packed(pieces, 4 * WIDTH, device))
    return GlobalBatch(_forward_alone, batches, [4 * WIDTH] * len(batches), COUNTS)


def _packed(pieces: list[tuple[Tensor, Tensor, Tensor, float]], width: int, device: torch.device) -> tuple[Any, ...]:
    ends = list(accumulate(len(tokens) for tokens, _, _, _ in pieces))
    tokens = torch.cat([*(tokens for tokens, _, _, _ in pieces), torch.zeros(width - ends[-1], dtype=torch.int64)])
    rows = torch.cat([start + rows for start, (_, rows, _, _) in zip([0, *ends], pieces)])  # noqa: B905  # one more
    weights = torch.cat([torch.full(rows.shape, weight) for _, rows, _, weight in pieces])
    labels = torch.cat([labels for _, _, labels, _ in pieces])
    tensors = (tokens[None], torch.arange(width)[None], rows, labels, weights)
    return PackedSegments.of([0, *ends, width], device), *(tensor.to(device) for tensor in tensors)


def _forward_alone(batches: Iterator[tuple[Any, ...]], chunk: Any) -> tuple[Any, Any]:
    segments, tokens, positions, rows, labels, weights = next(batches)
    scores = chunk(tokens, positions, None, labels=LabelScores(rows, labels), packed_seq_params=segments)
    return scores, partial(weighted_loss, weights)
