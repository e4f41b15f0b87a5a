"""Documents with their rollouts as rows of one micro-batch: trunk, instructions, responses.

A branch at position p reads trunk[:p], then its instruction, then one response. Its tokens stand at RoPE positions p,
p + 1, ... The G responses at one position share their instruction; all positions of a document share its trunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Branch:
    """Responses to one prompt: trunk[:position], then `instruction` (ids, may be empty)."""

    position: int
    instruction: Tensor
    responses: Sequence[Tensor]


@dataclass(frozen=True)
class Tree:
    """A document (ids) and what grows from it. `predicted` (P,) says which of its tokens are labels of the NTP loss."""

    trunk: Tensor
    predicted: Tensor
    branches: Sequence[Branch]

    @property
    def num_rows(self) -> int:
        """Rows that the tree takes."""
        return len(self.trunk) + sum(
            len(branch.instruction) + sum(len(response) for response in branch.responses) for branch in self.branches
        )


@dataclass(frozen=True)
class CallRows:
    """One call of the attention as row numbers: see `attention.tree.Call`."""

    rows: Tensor
    prefix: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Triples:
    """Row `rows[i]` predicts `labels[i]`; `group[i]` is the tree (NTP) or the response (RL) that it belongs to."""

    rows: Tensor
    labels: Tensor
    group: Tensor


@dataclass(frozen=True)
class TreeBatch:
    """tokens, position_ids (T,); responses are numbered over all trees, in order."""

    tokens: Tensor
    position_ids: Tensor
    calls: Sequence[CallRows]
    ntp: Triples
    rl: Triples


def lay_out(trees: Sequence[Tree], width: int) -> TreeBatch:
    """Trees one after the other in a row of `width` tokens; the rest is padding, in no call and at position 0."""
    layout = _Layout()
    for tree in trees:
        layout.add(tree)
    assert layout.at <= width, "trees are split before they are laid out"
    padding = torch.zeros(width - layout.at, dtype=torch.int64)
    return TreeBatch(
        tokens=torch.cat([*layout.tokens, padding]),
        position_ids=torch.cat([*layout.positions, padding]),
        calls=layout.calls,
        ntp=_triples(layout.ntp),
        rl=_triples(layout.rl),
    )


class _Layout:
    """Rows so far."""

    def __init__(self) -> None:
        self.at = 0
        self.tokens: list[Tensor] = []
        self.positions: list[Tensor] = []
        self.calls: list[CallRows] = []
        self.ntp: list[tuple[Tensor, Tensor, int]] = []  # rows, labels, tree
        self.rl: list[tuple[Tensor, Tensor, int]] = []  # rows, labels, response
        self._trees = 0

    def add(self, tree: Tree) -> None:
        """A trunk, then its branches."""
        start = self._append(tree.trunk, 0)
        if len(tree.trunk):
            self.calls.append(CallRows(_range(start, self.at)[None], ()))
        labels = tree.predicted[1:].nonzero()[:, 0] + 1
        self.ntp.append((start + labels - 1, tree.trunk[labels], self._trees))
        self._trees += 1
        for branch in tree.branches:
            self._add_branch(branch, start)

    def _add_branch(self, branch: Branch, trunk: int) -> None:
        p = branch.position
        prefix: tuple[tuple[int, int], ...] = ((trunk, trunk + p),)
        last = trunk + p - 1  # the row that scores every response's first token
        if len(branch.instruction):
            start = self._append(branch.instruction, p)
            self.calls.append(CallRows(_range(start, self.at)[None], prefix))
            prefix, last = (*prefix, (start, self.at)), self.at - 1
        begins = []
        for response in branch.responses:
            begins.append(self._append(response, p + len(branch.instruction)))
            assert last >= trunk or not len(response), "a response needs something to follow"
            rows = torch.cat([torch.tensor([last]), _range(begins[-1], self.at)])[: len(response)]
            self.rl.append((rows, response, len(self.rl)))
        lengths = torch.tensor([len(response) for response in branch.responses])
        if len(lengths) and int(lengths.max()):
            places = torch.arange(int(lengths.max()))
            rows = torch.where(places < lengths[:, None], torch.tensor(begins)[:, None] + places, -1)
            self.calls.append(CallRows(rows[lengths > 0], prefix))

    def _append(self, ids: Tensor, position: int) -> int:
        """Rows for some tokens that stand at `position` and after it; gives the first row."""
        start = self.at
        self.tokens.append(ids)
        self.positions.append(_range(position, position + len(ids)))
        self.at += len(ids)
        return start


def split_to_fit(tree: Tree, width: int) -> list[Tree]:
    """The tree, or parts of it that fit: each repeats the trunk, and the NTP labels stay with the first alone.

    Responses of one position may part. Raises ValueError where the trunk with one response does not fit.
    """
    if tree.num_rows <= width:
        return [tree]
    parts: list[list[Branch]] = [[]]
    used = len(tree.trunk)
    for branch in tree.branches:
        for response in branch.responses:
            begun = bool(parts[-1]) and parts[-1][-1].position == branch.position
            needed = len(response) + (0 if begun else len(branch.instruction))
            if used + needed > width:
                parts.append([])
                begun, used = False, len(tree.trunk)
                needed = len(response) + len(branch.instruction)
                if used + needed > width:
                    raise ValueError(f"a document of {used} tokens and a response of {needed} exceed {width} rows")
            if begun:
                last = parts[-1].pop()
                parts[-1].append(Branch(last.position, last.instruction, [*last.responses, response]))
            else:
                parts[-1].append(Branch(branch.position, branch.instruction, [response]))
            used += needed
    silent = torch.zeros_like(tree.predicted)
    return [
        Tree(tree.trunk, tree.predicted if number == 0 else silent, branches) for number, branches in enumerate(parts)
    ]


def _range(start: int, stop: int) -> Tensor:
    return torch.arange(start, stop)


def _triples(pieces: Sequence[tuple[Tensor, Tensor, int]]) -> Triples:
    nothing = torch.zeros(0, dtype=torch.int64)
    rows = torch.cat([nothing, *(rows for rows, _, _ in pieces)])
    labels = torch.cat([nothing, *(labels for _, labels, _ in pieces)])
    group = torch.cat([nothing, *(torch.full((len(rows),), number) for rows, _, number in pieces)])
    return Triples(rows, labels, group)
