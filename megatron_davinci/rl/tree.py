"""Documents with their rollouts as rows of one micro-batch: prefix, instructions, responses.

A branch at position p reads prefix[:p], then its instruction, then one response. Its tokens stand at RoPE positions p,
p + 1, ... The G responses at one position share their instruction; all positions of a document share its prefix.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_davinci.core.attention.blocks import AttentionBlock


@dataclass(frozen=True)
class ResponseRows:
    """tokens (R,) ids; `log_probs` (R,) in nats, as whoever wrote it saw them, and those of the reference model.

    Each token has the response's advantage (Eq. 6), and `weight` in the loss, fixed from counts of the global batch.
    `number`: its place among all responses of the step, where somebody wants to find it again.
    """

    tokens: Tensor
    log_probs: Tensor
    advantage: float
    weight: float
    reference_log_probs: Tensor | None = None
    number: int = 0


@dataclass(frozen=True)
class Branch:
    """Responses to one prompt: prefix[:position], then `instruction` (ids, may be empty)."""

    position: int
    instruction: Tensor
    responses: Sequence[ResponseRows]


@dataclass(frozen=True)
class Tree:
    """A document (P,) and what grows from it.

    label_weights (P,): what each of its tokens weighs as a label of the NTP loss; 0 where it is not predicted.
    """

    prefix: Tensor
    label_weights: Tensor
    branches: Sequence[Branch]

    @property
    def num_rows(self) -> int:
        """Rows that the tree takes."""
        return len(self.prefix) + sum(
            len(branch.instruction) + sum(len(response.tokens) for response in branch.responses)
            for branch in self.branches
        )

    @property
    def num_labels(self) -> int:
        """Tokens that are predicted: of the document, and of responses."""
        of_responses = sum(len(response.tokens) for branch in self.branches for response in branch.responses)
        return int(self.label_weights[1:].count_nonzero()) + of_responses

    @property
    def num_pairs(self) -> int:
        """How many keys all its queries see, which attention's work is proportional to."""
        pairs = _causal_pairs(len(self.prefix), 0)
        for branch in self.branches:
            pairs += _causal_pairs(len(branch.instruction), branch.position)
            before = branch.position + len(branch.instruction)
            pairs += sum(_causal_pairs(len(response.tokens), before) for response in branch.responses)
        return pairs


def _causal_pairs(rows: int, before: int) -> int:
    """Keys seen by `rows` queries, each of which sees `before` others, and its own up to itself."""
    return rows * before + rows * (rows + 1) // 2


@dataclass(frozen=True)
class WeightedLabels:
    """Row `rows[i]` predicts `labels[i]` and weighs `weights[i]`; all (N,)."""

    rows: Tensor
    labels: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> "WeightedLabels":
        """Copy the labels to another device."""
        return WeightedLabels(*(getattr(self, name).to(device) for name in ("rows", "labels", "weights")))


@dataclass(frozen=True)
class PolicyLabels:
    """Response tokens (N,) as labels: advantage, recorded log-probabilities, and each token's response by number."""

    weighted: WeightedLabels
    advantages: Tensor
    log_probs: Tensor
    reference_log_probs: Tensor
    responses: Tensor

    def to(self, device: torch.device) -> "PolicyLabels":
        """Copy the labels to another device."""
        names = ("weighted", "advantages", "log_probs", "reference_log_probs", "responses")
        return PolicyLabels(*(getattr(self, name).to(device) for name in names))


class BranchPrefix(NamedTuple):
    """Rows that all responses of a branch see; its `last` one predicts their first token, at `position`."""

    prefix: tuple[tuple[int, int], ...]
    last: int
    position: int


@dataclass(frozen=True)
class TreeBatch:
    """tokens, position_ids (T,). `ends`: the row after each tree; `branch_prefixes`: what precedes each branch."""

    tokens: Tensor
    position_ids: Tensor
    blocks: Sequence[AttentionBlock]
    ends: Sequence[int]
    ntp: WeightedLabels
    policy: PolicyLabels
    branch_prefixes: Sequence["BranchPrefix"]

    def to(self, device: torch.device) -> "TreeBatch":
        """Copy the batch to another device; the blocks stay on the host, where attention cuts the rows up."""
        moved = {name: getattr(self, name).to(device) for name in ("tokens", "position_ids", "ntp", "policy")}
        return replace(self, **moved)


def pack_row(trees: Sequence[Tree], width: int) -> TreeBatch:
    """Trees one after the other in a row of `width` tokens; the rest is padding, in no block and at position 0."""
    layout = _Layout()
    for tree in trees:
        layout.add(tree)
    assert layout.at <= width, "trees are split before they are laid out"
    padding = torch.zeros(width - layout.at, dtype=torch.int64)
    return TreeBatch(
        tokens=torch.cat([*layout.tokens, padding]),
        position_ids=torch.cat([*layout.positions, padding]),
        blocks=layout.blocks,
        ends=list(accumulate(tree.num_rows for tree in trees)),
        ntp=_join(layout.ntp),
        policy=layout.policy_labels(),
        branch_prefixes=layout.branch_prefixes,
    )


class _Layout:
    """Rows so far."""

    def __init__(self) -> None:
        self.at = 0
        self.tokens: list[Tensor] = []
        self.positions: list[Tensor] = []
        self.blocks: list[AttentionBlock] = []
        self.ntp: list[WeightedLabels] = []
        self.branch_prefixes: list[BranchPrefix] = []
        self._responses: list[tuple[Tensor, ResponseRows]] = []  # the rows that predict it

    def add(self, tree: Tree) -> None:
        """A prefix, then its branches."""
        start = self._append(tree.prefix, 0)
        if len(tree.prefix):
            self.blocks.append(AttentionBlock(((start, self.at),), ()))
        labels = tree.label_weights[1:].nonzero()[:, 0] + 1
        self.ntp.append(WeightedLabels(start + labels - 1, tree.prefix[labels], tree.label_weights[labels]))
        for branch in tree.branches:
            self._add_branch(branch, start)

    def _add_branch(self, branch: Branch, start_of_tree: int) -> None:
        p = branch.position
        prefix: tuple[tuple[int, int], ...] = ((start_of_tree, start_of_tree + p),)
        last = start_of_tree + p - 1  # the row that scores every response's first token
        if len(branch.instruction):
            start = self._append(branch.instruction, p)
            self.blocks.append(AttentionBlock(((start, self.at),), prefix))
            prefix, last = (*prefix, (start, self.at)), self.at - 1
        self.branch_prefixes.append(BranchPrefix(prefix, last, p + len(branch.instruction)))
        responses = []
        for response in branch.responses:
            start = self._append(response.tokens, p + len(branch.instruction))
            assert last >= start_of_tree or not len(response.tokens), "a response needs something to follow"
            rows = torch.cat([torch.tensor([last]), _range(start, self.at)])[: len(response.tokens)]
            self._responses.append((rows, response))
            if start < self.at:
                responses.append((start, self.at))
        if responses:
            self.blocks.append(AttentionBlock(tuple(responses), prefix))

    def _append(self, ids: Tensor, position: int) -> int:
        """Rows for some tokens that stand at `position` and after it; gives the first row."""
        start = self.at
        self.tokens.append(ids)
        self.positions.append(_range(position, position + len(ids)))
        self.at += len(ids)
        return start

    def policy_labels(self) -> PolicyLabels:
        """The labels of all responses in the row."""
        pieces, advantages, written, reference = [], [torch.zeros(0)], [torch.zeros(0)], [torch.zeros(0)]
        for rows, response in self._responses:
            pieces.append(WeightedLabels(rows, response.tokens, torch.full(rows.shape, response.weight)))
            advantages.append(torch.full(rows.shape, response.advantage))
            written.append(response.log_probs)
            known = response.reference_log_probs
            reference.append(torch.zeros(len(rows)) if known is None else known)
        lengths = torch.tensor([len(rows) for rows, _ in self._responses], dtype=torch.int64)
        numbers = torch.arange(len(lengths)).repeat_interleave(lengths)
        return PolicyLabels(_join(pieces), torch.cat(advantages), torch.cat(written), torch.cat(reference), numbers)


def unshare(tree: Tree) -> list[Tree]:
    """The document by itself, and for each response a document that ends where the response was asked for.

    Nothing is shared any more: each is a plain sequence, whose rows follow each other. What trees are compared with.
    """
    found = [replace(tree, branches=[])] if tree.label_weights.any() else []
    silent = torch.zeros_like(tree.label_weights)
    for branch in tree.branches:
        for response in branch.responses:
            found.append(trim_prefix(Tree(tree.prefix, silent, [replace(branch, responses=[response])])))
    return found


def split_to_fit(tree: Tree, width: int) -> list[Tree]:
    """The tree, or parts of it that fit: the first has the NTP labels, the others repeat what they see of the prefix.

    Responses of one position may part. Raises ValueError where the prefix with one response does not fit.
    """
    if tree.num_rows <= width:
        return [tree]
    parts: list[list[Branch]] = [[]]
    used = len(tree.prefix)
    for branch in tree.branches:
        begun = False
        for response in branch.responses:
            needed = len(response.tokens) + (0 if begun else len(branch.instruction))
            if used + needed > width:
                parts.append([])
                begun, used = False, len(tree.prefix)
                needed = len(response.tokens) + len(branch.instruction)
                if used + needed > width:
                    raise ValueError(f"a document of {used} tokens and a response of {needed} exceed {width} rows")
            if begun:
                last = parts[-1].pop()
                parts[-1].append(replace(last, responses=[*last.responses, response]))
            else:
                parts[-1].append(replace(branch, responses=[response]))
            used += needed
            begun = True
    silent = torch.zeros_like(tree.label_weights)
    others = [trim_prefix(Tree(tree.prefix, silent, branches)) for branches in parts[1:]]
    return [replace(tree, branches=parts[0]), *others]


def trim_prefix(tree: Tree) -> Tree:
    """The tree without the end of its prefix that predicts nothing and that no branch sees."""
    predicted = int(tree.label_weights.nonzero().max()) + 1 if tree.label_weights.any() else 0
    seen = max([predicted, *(branch.position for branch in tree.branches)])
    return replace(tree, prefix=tree.prefix[:seen], label_weights=tree.label_weights[:seen])


def _range(start: int, stop: int) -> Tensor:
    return torch.arange(start, stop)


def _join(pieces: Sequence[WeightedLabels]) -> WeightedLabels:
    nothing = torch.zeros(0, dtype=torch.int64)
    return WeightedLabels(
        torch.cat([nothing, *(piece.rows for piece in pieces)]),
        torch.cat([nothing, *(piece.labels for piece in pieces)]),
        torch.cat([torch.zeros(0), *(piece.weights for piece in pieces)]),
    )
