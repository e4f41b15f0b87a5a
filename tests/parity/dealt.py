"""Steps whose rows are dealt in ways that no rule gives, for the ranks of the tests."""

import random
from collections.abc import Sequence
from functools import partialmethod
from typing import Any
from unittest.mock import patch

import layouts

from data_prep.io.arithmetic import ceil_to_multiple
from megatron_davinci.data.rows import PlannedRow, RowRules, RowUnit


def measure(values: dict[str, Any], seeds: Sequence[int], lost: bool = False) -> list[dict[str, Any]]:
    """What `layouts.measure` gives for a recipe under a dealing of each seed; `lost`: without one unit."""
    left = iter(seeds)

    def measure_next(chosen: dict[str, Any], device: Any) -> dict[str, Any]:
        with patch.object(RowRules, "deal", partialmethod(_at_random, next(left), lost)):
            return layouts.measure_one(chosen, device)

    return layouts.in_their_layouts([values] * len(seeds), measure_next)


def _at_random(
    self: RowRules, seed: int, lost: bool, units: Sequence[RowUnit], replicas: int
) -> list[list[PlannedRow]]:
    """Some rows are wider than they must be, some empty; replicas have different numbers of them."""
    draw = random.Random(seed)
    numbers = list(range(lost, len(units)))
    draw.shuffle(numbers)
    dealt: list[list[PlannedRow]] = [[] for _ in range(replicas)]
    while numbers:
        row: list[int] = []
        room = draw.randint(1, self.max_width)
        while numbers and (not row or sum(units[each].room for each in [*row, numbers[-1]]) <= room):
            row.append(numbers.pop())
        used = max(sum(units[each].room for each in row), draw.randint(1, self.max_width))
        dealt[draw.randrange(replicas)].append(PlannedRow(tuple(row), ceil_to_multiple(used, self.row_alignment)))
    for rows in dealt:
        wanted = ceil_to_multiple(max(1, len(rows)), self.row_multiple)
        rows += [PlannedRow((), ceil_to_multiple(draw.randint(1, 40), self.row_alignment))] * (wanted - len(rows))
    return dealt
