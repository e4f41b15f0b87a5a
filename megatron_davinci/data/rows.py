"""Which rows each replica trains in a step, so that all replicas are done at the same time. Torch-free.

A step waits for its slowest replica, and a row costs what its documents cost: work that grows with their tokens, and
attention's, which grows with the squares of their lengths. So units are dealt to replicas first, the dearest one to the
replica with the least to do (longest processing time first, Graham 1969), and each replica then packs its own into as
few rows as hold them, again the dearest one into the cheapest row that has room. Rows are as wide as what is in them.
A pipeline is short of work at its beginning and end: cheap rows come first and last.

Costs are integers counted from sizes, never times that were measured: every rank finds the same rows by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush, heapreplace
from typing import NamedTuple, Self

import numpy as np

from data_prep.corpus import pack_documents
from data_prep.io.arithmetic import ceil_to_multiple
from megatron_davinci.config.stage import StageRecipe
from megatron_davinci.data.documents import PackedSequence
from megatron_davinci.models.sizes import ModelSizes

_ATTEMPTS = 4
"""Numbers of rows that are tried for a balanced packing, before one is taken that only fits."""


class RowUnit(NamedTuple):
    """What lies in one row as a whole. `room`: tokens, padding up to the alignment included; `cost`: multiplications
    of its forward pass."""

    room: int
    cost: int


@dataclass(frozen=True)
class PlannedRow:
    """The units of one micro-batch, by number, and its `width` in tokens. A row without units is padding."""

    units: tuple[int, ...]
    width: int


@dataclass(frozen=True)
class RowRules:
    """What the rows of a stage keep to.

    `max_width`: tokens; `document_alignment`, `row_alignment`: what the room of a document, and a row's width, are
    multiples of; `row_multiple`: what the number of a replica's rows is a multiple of; `per_token`, `per_pair`:
    multiplications of the forward pass for a token, and for a query and a key that it sees.
    """

    max_width: int
    document_alignment: int
    row_alignment: int
    row_multiple: int
    per_token: int
    per_pair: int

    @classmethod
    def of(cls, stage: StageRecipe, model: ModelSizes, document_alignment: int | None = None) -> Self:
        """The rules of a stage's layout. `document_alignment`: of its plan, where that is another."""
        weights = sum(layer.num_weights for layer in model.linear_layers)
        return cls(
            max_width=stage.batch.micro_batch_size * stage.seq_length,
            document_alignment=document_alignment or stage.document_alignment,
            row_alignment=stage.alignment.row,
            row_multiple=stage.layout.microbatch_multiple,
            per_token=model.num_layers * weights + model.hidden_size * model.vocab_size,
            per_pair=2 * model.num_layers * model.query_size,
        )

    def cost(self, tokens: int, pairs: int) -> int:
        """Multiplications of a forward pass over `tokens` whose queries see `pairs` keys together."""
        return self.per_token * tokens + self.per_pair * pairs

    def document_cost(self, length: int) -> int:
        """Multiplications of a forward pass over a document, whose tokens see themselves and those before them."""
        return self.cost(length, length * (length + 1) // 2)

    def unit_of(self, spans: PackedSequence) -> RowUnit:
        """Spans of documents that lie in one row together."""
        room = sum(ceil_to_multiple(span.length, self.document_alignment) for span in spans)
        return RowUnit(room, sum(self.document_cost(span.length) for span in spans))

    def deal(self, units: Sequence[RowUnit], replicas: int) -> list[list[PlannedRow]]:
        """The rows of each replica, in the order in which it trains them; none has fewer than `row_multiple`."""
        return [self._rows_of(units, chosen) for chosen in _deal_to_replicas(units, replicas)]

    def _rows_of(self, units: Sequence[RowUnit], chosen: Sequence[int]) -> list[PlannedRow]:
        packed = self._best_fit(units, chosen)
        least = ceil_to_multiple(max(1, len(packed)), self.row_multiple)
        counts = (least + self.row_multiple * more for more in range(_ATTEMPTS))
        balanced = (_fill(units, chosen, count, self.max_width) for count in counts)
        rows = next((rows for rows in balanced if rows is not None), packed)
        rows += [[] for _ in range(-len(rows) % self.row_multiple)]
        costs = [sum(units[number].cost for number in row) for row in rows]
        return [self._planned(units, rows[index]) for index in _cheap_ends(costs)]

    def _best_fit(self, units: Sequence[RowUnit], chosen: Sequence[int]) -> list[list[int]]:
        """As few rows as there may be, whatever they cost."""
        rooms = np.array([units[number].room for number in chosen], np.int64)
        plan = pack_documents(rooms, self.max_width, "error")
        return [[chosen[index] for index, _, _ in plan.sequence(row)] for row in range(len(plan))]

    def _planned(self, units: Sequence[RowUnit], row: Sequence[int]) -> PlannedRow:
        used = sum(units[number].room for number in row)
        return PlannedRow(tuple(sorted(row)), ceil_to_multiple(max(1, used), self.row_alignment))


def _dearest_first(units: Sequence[RowUnit], chosen: Sequence[int]) -> list[int]:
    return sorted(chosen, key=lambda number: (-units[number].cost, number))


def _deal_to_replicas(units: Sequence[RowUnit], replicas: int) -> list[list[int]]:
    """The numbers of each replica's units."""
    loads = [(0, replica) for replica in range(replicas)]
    dealt: list[list[int]] = [[] for _ in range(replicas)]
    for number in _dearest_first(units, range(len(units))):
        load, replica = loads[0]
        dealt[replica].append(number)
        heapreplace(loads, (load + units[number].cost, replica))
    return dealt


def _fill(units: Sequence[RowUnit], chosen: Sequence[int], count: int, max_width: int) -> list[list[int]] | None:
    """So many rows of about the same cost, None where this way finds no room for a unit."""
    rows: list[list[int]] = [[] for _ in range(count)]
    cheapest = _CheapestRow(max_width)
    for index in range(count):
        cheapest.add(max_width, 0, index)
    for number in _dearest_first(units, chosen):
        unit = units[number]
        found = cheapest.take(unit.room)
        if found is None:
            return None
        room, cost, index = found
        rows[index].append(number)
        cheapest.add(room - unit.room, cost + unit.cost, index)
    return rows


class _CheapestRow:
    """The cheapest of the rows that have some room: a tree of minima over how much room there is."""

    def __init__(self, max_width: int) -> None:
        self._leaves = 1 << max_width.bit_length()
        self._best: list[tuple[int, int, int] | None] = [None] * (2 * self._leaves)  # cost, index, room
        self._rows: dict[int, list[tuple[int, int]]] = {}

    def add(self, room: int, cost: int, index: int) -> None:
        heappush(self._rows.setdefault(room, []), (cost, index))
        self._update(room)

    def take(self, least: int) -> tuple[int, int, int] | None:
        """(room, cost, index) of the cheapest row with so much room at least, which is no longer there; or None."""
        found: tuple[int, int, int] | None = None
        node = least + self._leaves
        while node:
            candidate = self._best[node]
            if candidate is not None and (found is None or candidate < found):
                found = candidate
            while node & 1:  # a right child's parent holds less room too
                node >>= 1
            node = node + 1 if node else 0
        if found is None:
            return None
        cost, index, room = found
        heappop(self._rows[room])
        self._update(room)
        return room, cost, index

    def _update(self, room: int) -> None:
        rows, node = self._rows[room], room + self._leaves
        self._best[node] = (*rows[0], room) if rows else None
        while node > 1:
            node >>= 1
            left, right = self._best[2 * node], self._best[2 * node + 1]
            self._best[node] = right if left is None else left if right is None else min(left, right)


def _cheap_ends(costs: Sequence[int]) -> list[int]:
    """Indices in an order that rises to the dearest in the middle and falls again."""
    rising = sorted(range(len(costs)), key=lambda index: (costs[index], index))
    return rising[::2] + rising[1::2][::-1]
