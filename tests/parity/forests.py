"""What each rank runs in the tests of random steps of RMT: as trees, split, and as a sequence for each response."""

import random
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from layouts import as_arrays, in_their_layouts

from megatron_davinci.config import parse_recipe
from megatron_davinci.config.objectives import Rmt
from megatron_davinci.core.build_trainer import build_trainer
from megatron_davinci.core.counts import BatchCounts
from megatron_davinci.core.groups import data_rank
from megatron_davinci.core.step import GlobalBatch
from megatron_davinci.data.documents import Span
from megatron_davinci.data.rows import RowRules
from megatron_davinci.models.config import load_model_config
from megatron_davinci.rl.batch import ScoredDocument, deal_trees, grow_trees
from megatron_davinci.rl.grading import Score, ScoredGroup
from megatron_davinci.rl.policy_step import REPORTS, policy_forward_step
from megatron_davinci.rl.prompt_source import DocumentPrompts, PromptSource
from megatron_davinci.rl.rollout_files import Group, PromptSpec, Response
from megatron_davinci.rl.tree import pack_row
from megatron_davinci.testing.gather import gather_gradients

VOCABULARY, NARROW, WIDE = 256, 72, 512
COUNTS = BatchCounts(0, 0, 0, 0, {})
WRAP = [90, 91, 92]  # what stands before the text
GRPO = {"policy": {"kind": "grpo"}, "kl_beta": 0.3, "temperature": 0.7}
DAPO = {"policy": {"kind": "dapo", "importance_ratio_cap": 2.0}, "normalization": "per_component_tokens"}
# The preamble, and the objective.
STEPS: dict[str, tuple[list[int], dict[str, Any]]] = {
    "suffix, reinforce": ([], {}),
    "suffix, grpo with KL at another temperature": ([], GRPO),
    "wrap, grpo, next tokens in the document": (WRAP, GRPO),
    "suffix, gspo": ([], {"policy": {"kind": "gspo", "clip_low": 0.9, "clip_high": 1.5}, "kl_beta": 0.1}),
    "suffix, dr_grpo": ([], {"policy": {"kind": "dr_grpo"}, "mask_truncated_completions": True}),
    "wrap, dapo, next tokens behind the preamble": (WRAP, {**DAPO, "paper": {"ntp_context": "prefix"}}),
}
PATHS = {"tree": (WIDE, True), "split": (NARROW, True), "unshared": (NARROW, False)}


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


def random_step(seed: int, masks: bool = False) -> list[ScoredDocument]:
    """Documents with any number of positions from the first token to the last, and responses of any length; where it
    `masks`, those that were cut off are not trained."""
    draw = random.Random(seed)

    def ids(count: int) -> list[int]:
        return [draw.randrange(1, VOCABULARY) for _ in range(count)]

    def respond(count: int) -> Response:
        written, reference = ([-4 * draw.random() for _ in range(count)] for _ in range(2))
        return Response(ids(count), written, draw.random() < 0.7, reference)

    found = []
    for document in range(6):
        length = draw.randint(1, 25)
        positions = sorted(draw.sample(range(length), min(length, draw.choice([0, 1, 1, 3]))))
        specs = [PromptSpec(document, 0, position, 0, 5, "-") for position in positions]
        groups = []
        for spec in specs:
            responses = [respond(draw.choice([0, 1, 4, 9])) for _ in range(draw.choice([2, 4]))]
            score = Score(None, True, 0.5, 0.0, True, 1)
            advantages = [draw.gauss(0, 1) for _ in responses]
            trained = [each.finished or not masks for each in responses]
            groups.append(ScoredGroup(Group(spec, responses), [score] * len(responses), advantages, trained))
        predicted = torch.ones(length, dtype=torch.bool)
        predicted[0] = False
        document = DocumentPrompts(Span(document, 0, length, 0), np.array(ids(length)), specs, 0, 0)
        found.append(ScoredDocument(document, predicted, groups))
    return found


def _measure_one(values: dict[str, Any], device: torch.device) -> dict[tuple[str, str], Any]:
    recipe = parse_recipe(values)
    trainer = build_trainer(recipe, recipe.stage(0), load_model_config(recipe.model), device)
    rank, size = data_rank()
    found = {}
    for number, (step, (preamble, objective)) in enumerate(STEPS.items()):
        for path, (width, shared) in PATHS.items():
            options = Rmt(kind="rmt", rollouts="-", share_prefix=shared, **objective)
            answered = random_step(number, options.mask_truncated_completions)
            trees = grow_trees(answered, options, cast(PromptSource[Any], StandIn(preamble)))
            rows = deal_trees(trees, RowRules(width, 1, 4, 4, 1, 1), shared, size)[rank]
            batches = [pack_row(row.trees, row.width).to(device) for row in rows]
            widths = [row.width for row in rows]
            sums = trainer.gradients(
                GlobalBatch(partial(policy_forward_step, options), batches, widths, COUNTS, REPORTS)
            )
            found[step, path] = (sums, as_arrays(gather_gradients(trainer)))
    return found
