"""The reference model that Eq. 7's KL term holds the policy near: the same layout, weights that stay as they were."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count
from typing import Any, Self

import torch
from megatron.core import parallel_state
from torch import Tensor

from megatron_davinci.config import Recipe, StageRecipe
from megatron_davinci.config.objectives import RolloutOptions
from megatron_davinci.core.build_trainer import build_model
from megatron_davinci.core.gpt import LabelScores
from megatron_davinci.core.groups import all_gather_object, data_rank
from megatron_davinci.core.optimizer import in_precision
from megatron_davinci.core.step import ForwardOutput, run_schedule
from megatron_davinci.data.rows import RowRules
from megatron_davinci.models.config import ModelConfig
from megatron_davinci.rl import tree
from megatron_davinci.rl.batch import TreeRow, deal_trees
from megatron_davinci.rl.policy_step import segments_of
from megatron_davinci.rl.prompt_source import DocumentPrompts, PromptSource
from megatron_davinci.rl.rollout_files import Group

LogProbs = dict[int, list[float]]  # by the response's number among all of a step


@dataclass(frozen=True)
class Reference:
    """The reference model: its chunks on this rank, in the layout of the stage, and the rules of its rows."""

    chunks: Sequence[torch.nn.Module]
    rules: RowRules
    options: RolloutOptions
    device: torch.device

    @classmethod
    def of(
        cls, recipe: Recipe, stage: StageRecipe, options: RolloutOptions, model: ModelConfig, device: torch.device
    ) -> Self:
        """The one that the recipe names, or else the weights that it begins with."""
        named = recipe.model_copy(update={"init_from": options.reference or recipe.init_from})
        config, models = build_model(named, stage, model, device)
        return cls(in_precision(config, models), RowRules.of(stage, model), options, device)

    @torch.no_grad()
    def score(
        self, prompt_source: PromptSource[Any], documents: Sequence[DocumentPrompts], groups: Sequence[Group]
    ) -> list[Group]:
        """The groups with its log-probability of each token; on every rank."""
        trees = _trees(prompt_source, documents, groups)
        rank, size = data_rank()
        share = deal_trees(trees, self.rules, self.options.share_prefix, size)[rank]
        batches = [tree.pack_row(row.trees, row.width).to(self.device) for row in share]
        how = {"forward_only": True, "collect_non_loss_data": True}
        widths = [row.width for row in share]
        found = run_schedule(self.chunks, partial(_forward, self.options), batches, widths, **how) if trees else []
        first = parallel_state.get_tensor_model_parallel_rank() == 0
        ours = _by_response(share, found) if found and first else {}
        known = {number: values for part in all_gather_object(ours) for number, values in part.items()}
        return _with_log_probs(groups, known)


def _trees(
    prompt_source: PromptSource[Any], documents: Sequence[DocumentPrompts], groups: Sequence[Group]
) -> list[tree.Tree]:
    """Documents with all responses, numbered in their order, which weigh nothing."""
    trees, following, number = [], iter(groups), count()
    for document in documents:
        prefix = torch.tensor([*prompt_source.preamble, *document.ids.tolist()], dtype=torch.int64)
        branches = []
        for spec in document.specs:
            instruction = torch.tensor(prompt_source.instruction(spec.budget), dtype=torch.int64)
            responses = []
            for response in next(following).responses:
                tokens = torch.tensor(response.tokens, dtype=torch.int64)
                responses.append(tree.ResponseRows(tokens, torch.zeros(len(tokens)), 0.0, 0.0, number=next(number)))
            branches.append(tree.Branch(len(prompt_source.preamble) + spec.position, instruction, responses))
        if branches:
            trees.append(tree.trim_prefix(tree.Tree(prefix, torch.zeros(len(prefix)), branches)))
    return trees


def _forward(options: RolloutOptions, batches: Iterator[tree.TreeBatch], chunk: Any) -> ForwardOutput:
    batch = next(batches)
    rows = batch.policy.weighted
    temperatures = torch.full_like(rows.weights, options.temperature)
    documents = LabelScores(rows.rows, rows.labels, temperatures)
    segments = segments_of(batch, options.share_prefix)
    output = chunk(batch.tokens[None], batch.position_ids[None], None, labels=documents, packed_seq_params=segments)
    return output, lambda output, non_loss_data: output[0]


def _by_response(share: Sequence[TreeRow], found: Sequence[Tensor]) -> LogProbs:
    """Log-probabilities of rows lie in the order of their trees, branches and responses."""
    known: LogProbs = {}
    for row, log_probs in zip(share, found, strict=True):
        branches = chain.from_iterable(each.branches for each in row.trees)
        responses = list(chain.from_iterable(branch.responses for branch in branches))
        parts = log_probs.float().clamp(max=0.0).split([len(response.tokens) for response in responses])
        known |= {each.number: part.tolist() for each, part in zip(responses, parts, strict=True)}
    return known


def _with_log_probs(groups: Sequence[Group], known: LogProbs) -> list[Group]:
    number, scored = 0, []
    for group in groups:
        responses = []
        for response in group.responses:
            responses.append(replace(response, reference_log_probs=known[number]))
            number += 1
        scored.append(replace(group, responses=responses))
    return scored
