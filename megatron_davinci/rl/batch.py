"""A step's documents and scored rollouts as rows of micro-batches, with every weight of the loss fixed.

Weights come from counts of the whole global batch, so that the gradient is the same however it is split.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from megatron_davinci.config.objectives import RolloutOptions
from megatron_davinci.config.registries import POLICY_LOSSES
from megatron_davinci.core.losses.rmt import RmtCounts, ntp_weight, response_token_weight
from megatron_davinci.data.rows import RowRules, RowUnit
from megatron_davinci.rl.grading import ScoredGroup
from megatron_davinci.rl.prompt_source import DocumentPrompts, PromptSource
from megatron_davinci.rl.tree import Branch, ResponseRows, Tree, split_to_fit, trim_prefix, unshare


@dataclass(frozen=True)
class ScoredDocument:
    """A document, what of it is predicted (tokens,), and the groups of responses to what was asked about it."""

    prompts: DocumentPrompts
    predicted: Tensor
    groups: Sequence[ScoredGroup]

    @cached_property
    def labels(self) -> Tensor:
        """Eq. 8: what is predicted, without the positions that were asked for; a problem's answer is no part of it."""
        labels = self.predicted.clone()
        labels[[spec.position for spec in self.prompts.specs if spec.position < len(labels)]] = False
        return labels


def count(answered: Sequence[ScoredDocument]) -> RmtCounts:
    """What the weights of a global batch depend on."""
    groups = [scored for document in answered for scored in document.groups]
    responses = chain.from_iterable(zip(each.group.responses, each.trained, strict=True) for each in groups)
    return RmtCounts(
        documents=len(answered),
        positions=len(groups),
        ntp_labels=sum(int(document.labels.sum()) for document in answered),
        response_tokens=sum(len(response.tokens) for response, trained in responses if trained),
    )


def grow_trees(
    answered: Sequence[ScoredDocument], options: RolloutOptions, prompt_source: PromptSource[Any]
) -> list[Tree]:
    """A tree for each document and, where next tokens are predicted in the document by itself, one more for that.

    A response without advantage moves nothing, unless a KL term does: it is left out, as one that is not trained on.
    """
    counts = count(answered)
    label_weight = ntp_weight(options.normalization, counts, options.ntp_lambda)
    preamble = torch.tensor(prompt_source.preamble, dtype=torch.int64)
    trees = []
    for document in answered:
        ids = torch.from_numpy(document.prompts.ids)
        weights = document.labels * label_weight
        branches = _branches(document, options, prompt_source, counts)
        prefix = torch.cat([preamble, ids])
        if not len(preamble) or options.paper.ntp_context == "prefix":
            trees.append(Tree(prefix, torch.cat([torch.zeros(len(preamble)), weights]), branches))
        else:
            trees += [Tree(ids, weights, []), Tree(prefix, torch.zeros(len(prefix)), branches)]
    return [trim_prefix(tree) for tree in trees if tree.branches or tree.label_weights.any()]


def _branches(
    document: ScoredDocument, options: RolloutOptions, prompt_source: PromptSource[Any], counts: RmtCounts
) -> list[Branch]:
    aggregation = POLICY_LOSSES.get(options.policy.kind).aggregation
    branches = []
    for scored in document.groups:
        spec = scored.group.spec
        has_kl = options.kl_beta > 0 and (options.kl_all_groups or any(scored.advantages))
        responses = [
            ResponseRows(
                tokens=torch.tensor(response.tokens, dtype=torch.int64),
                log_probs=torch.tensor(response.log_probs, dtype=torch.float32),
                advantage=advantage,
                weight=response_token_weight(
                    options.normalization, aggregation, counts, len(scored.scores), len(response.tokens)
                ),
                reference_log_probs=None
                if response.reference_log_probs is None
                else torch.tensor(response.reference_log_probs, dtype=torch.float32),
            )
            for response, advantage, trained in zip(
                scored.group.responses, scored.advantages, scored.trained, strict=True
            )
            if trained and len(response.tokens) and (advantage != 0.0 or has_kl)
        ]
        if responses:
            instruction = torch.tensor(prompt_source.instruction(spec.budget), dtype=torch.int64)
            branches.append(Branch(len(prompt_source.preamble) + spec.position, instruction, responses))
    return branches


class TreeRow(NamedTuple):
    """The trees of one micro-batch, and the tokens of its row."""

    trees: list[Tree]
    width: int


def deal_trees(trees: Sequence[Tree], rules: RowRules, shared: bool, replicas: int) -> list[list[TreeRow]]:
    """The rows of each replica: trees, split where they are too wide; not `shared`: a sequence for each response."""
    whole = trees if shared else [chain_ for tree in trees for chain_ in unshare(tree)]
    parts = [part for tree in whole for part in split_to_fit(tree, rules.max_width)]
    units = [RowUnit(part.num_rows, rules.cost(part.num_rows, part.num_pairs)) for part in parts]
    return [
        [TreeRow([parts[number] for number in row.units], row.width) for row in rows]
        for rows in rules.deal(units, replicas)
    ]
