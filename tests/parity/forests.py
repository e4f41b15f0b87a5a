"""What each rank runs in the tests of random steps of RMT: as trees, split, and as a sequence for each response."""

import random
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from layouts import as_arrays, in_their_layouts

from megatron_davinci.data.documents import Span
from megatron_davinci.models.config import load_model_config
from megatron_davinci.recipe import parse_recipe
from megatron_davinci.rmt.asks import Asker, DocumentAsks
from megatron_davinci.rmt.batch import Answered, grow_trees, pack_trees
from megatron_davinci.rmt.options import Rmt
from megatron_davinci.rmt.scores import Score, ScoredGroup
from megatron_davinci.rmt.tree import lay_out
from megatron_davinci.rollout.records import Ask, Group, Response
from megatron_davinci.testing.gather import gather_gradients
from megatron_davinci.train.building import build_trainer
from megatron_davinci.train.counts import BatchCounts
from megatron_davinci.train.parallel import data_rank
from megatron_davinci.train.reinforcement import REPORTS, forward_step
from megatron_davinci.train.step import Work

VOCABULARY, NARROW, WIDE = 256, 72, 512
COUNTS = BatchCounts(0, 0, 0, 0, {})
WRAP = [90, 91, 92]  # what stands before the text
GRPO = {"policy": {"kind": "grpo"}, "kl_beta": 0.3, "temperature": 0.7}
DAPO = {"policy": {"kind": "dapo", "importance_cap": 2.0}, "normalization": "per_component_tokens"}
# The preamble, and the objective.
STEPS: dict[str, tuple[list[int], dict[str, Any]]] = {
    "suffix, reinforce": ([], {}),
    "suffix, grpo with KL at another temperature": ([], GRPO),
    "wrap, grpo, next tokens in the document": (WRAP, GRPO),
    "wrap, dapo, next tokens behind the preamble": (WRAP, {**DAPO, "ntp_context": "trunk"}),
}
PATHS = {"tree": (WIDE, True), "split": (NARROW, True), "chains": (NARROW, False)}


class StandIn:
    """The part of an Asker that rows need."""

    def __init__(self, preamble: list[int]) -> None:
        self.preamble = preamble

    def instruction(self, budget: int) -> list[int]:
        """Three tokens and the budget's."""
        return [70, 71, 72, budget]


def measure(recipes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per recipe: (step, path) -> the sums of the loss's parts, and every gradient."""
    return in_their_layouts(recipes, _measure_one)


def random_step(seed: int) -> list[Answered]:
    """Documents with any number of positions from the first token to the last, and responses of any length."""
    draw = random.Random(seed)

    def ids(count: int) -> list[int]:
        return [draw.randrange(1, VOCABULARY) for _ in range(count)]

    def respond(count: int) -> Response:
        written, reference = ([-4 * draw.random() for _ in range(count)] for _ in range(2))
        return Response(ids(count), written, True, reference)

    found = []
    for document in range(6):
        length = draw.randint(1, 25)
        positions = sorted(draw.sample(range(length), min(length, draw.choice([0, 1, 1, 3]))))
        asks = [Ask(document, 0, position, 0, 5, "-") for position in positions]
        groups = []
        for ask in asks:
            responses = [respond(draw.choice([0, 1, 4, 9])) for _ in range(draw.choice([2, 4]))]
            score = Score(True, 0.5, 0.0, True, 1)
            advantages = [draw.gauss(0, 1) for _ in responses]
            groups.append(ScoredGroup(Group(ask, responses), [score] * len(responses), advantages))
        predicted = torch.ones(length, dtype=torch.bool)
        predicted[0] = False
        about = DocumentAsks(Span(document, 0, length, 0), np.array(ids(length)), asks, 0, 0)
        found.append(Answered(about, predicted, groups))
    return found


def _measure_one(values: dict[str, Any], device: torch.device) -> dict[tuple[str, str], Any]:
    recipe = parse_recipe(values)
    trainer = build_trainer(recipe, recipe.stage(0), load_model_config(recipe.model), device)
    rank, size = data_rank()
    found = {}
    for number, (step, (preamble, objective)) in enumerate(STEPS.items()):
        for path, (width, shared) in PATHS.items():
            options = Rmt(kind="rmt", rollouts="-", tree=shared, **objective)
            trees = grow_trees(random_step(number), options, cast(Asker[Any], StandIn(preamble)))
            rows = pack_trees(trees, width, shared)
            rows += [[] for _ in range(-len(rows) % 4)]  # pipelines and replicas want equally many
            batches = [lay_out(row, width) for row in rows[rank::size]]
            sums = trainer.gradients(Work(partial(forward_step, options), batches, width, COUNTS, REPORTS))
            found[step, path] = (sums, as_arrays(gather_gradients(trainer)))
    return found
