"""Tests of dealing: every unit once, in rows that hold it; replicas alike; the same rows on every rank."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_davinci.data.rows import PlannedRow, RowRules, RowUnit

RULES = RowRules(max_width=64, document_alignment=4, row_alignment=8, row_multiple=1, per_token=100, per_pair=3)


def rules(**changed: Any) -> RowRules:
    return RowRules(**{**RULES.__dict__, **changed})


def loads(units: list[RowUnit], dealt: list[list[PlannedRow]]) -> list[int]:
    return [sum(units[number].cost for row in rows for number in row.units) for rows in dealt]


@given(
    st.lists(st.integers(1, 64), max_size=60), st.integers(1, 9), st.sampled_from([1, 2, 4]), st.sampled_from([64, 128])
)
def test_every_unit_lies_in_one_row_that_holds_it(
    lengths: list[int], replicas: int, multiple: int, max_width: int
) -> None:
    chosen = rules(row_multiple=multiple, max_width=max_width)
    units = [RowUnit(-(-length // 4) * 4, chosen.document_cost(length)) for length in lengths]
    dealt = chosen.deal(units, replicas)
    assert len(dealt) == replicas and all(rows and len(rows) % multiple == 0 for rows in dealt)
    assert sorted(number for rows in dealt for row in rows for number in row.units) == list(range(len(units)))
    for row in (row for rows in dealt for row in rows):
        used = sum(units[number].room for number in row.units)
        assert max(1, used) <= row.width <= max_width and row.width % 8 == 0 and row.width - used < 8 + (not used)
    costs = loads(units, dealt)
    assert max(costs) - min(costs) <= max((unit.cost for unit in units), default=0)
    assert chosen.deal(units, replicas) == dealt


def test_costs_are_the_numbers_of_multiplications() -> None:
    """Two layers of 10 x 10 weights and 3 query heads of 2 would have per_pair 2 * 2 * 6."""
    assert RULES.document_cost(4) == 100 * 4 + 3 * (4 + 3 + 2 + 1)


def test_a_long_document_weighs_more_than_short_ones_of_as_many_tokens() -> None:
    lengths = [64, *[8] * 16]
    units = [RowUnit(length, RULES.document_cost(length)) for length in lengths]
    long_one, others = RULES.deal(units, 2)
    assert sum(row.width for row in long_one) < sum(row.width for row in others)
    by_tokens = rules(per_pair=0)
    units = [RowUnit(length, by_tokens.document_cost(length)) for length in lengths]
    assert len({sum(row.width for row in rows) for rows in by_tokens.deal(units, 2)}) == 1


def test_cheap_rows_come_first_and_last() -> None:
    units = [RowUnit(64, cost) for cost in (5, 1, 4, 2, 3)]
    [rows] = RULES.deal(units, 1)
    assert [units[number].cost for row in rows for number in row.units] == [1, 3, 5, 4, 2]


def test_ties_go_by_number() -> None:
    units = [RowUnit(64, 7)] * 5
    assert [[row.units for row in rows] for rows in RULES.deal(units, 2)] == [[(0,), (4,), (2,)], [(1,), (3,)]]


@pytest.mark.parametrize("multiple, filled", [(1, 1), (4, 4)])
def test_a_replica_without_units_has_rows_of_padding(multiple: int, filled: int) -> None:
    [_, idle] = rules(row_multiple=multiple).deal([RowUnit(64, 1)], 2)
    assert idle == [PlannedRow((), 8)] * filled


def test_what_no_balanced_packing_holds_is_packed_all_the_same() -> None:
    """The dearest units are small here: dealt first, they leave no row with room for the large ones."""
    units = [*[RowUnit(3, 100)] * 40, *[RowUnit(62, 1)] * 40]
    [rows] = rules(row_multiple=4).deal(units, 1)
    assert sorted(number for row in rows for number in row.units) == list(range(80)) and len(rows) % 4 == 0
    assert all(row.width <= 64 for row in rows)


def test_many_units_that_fill_rows_badly_take_no_long_time() -> None:
    """Each takes a row of its own, which is known before rows are filled; trying all numbers of rows took minutes."""
    [rows] = RULES.deal([RowUnit(60, 1)] * 5000, 1)
    assert len(rows) == 5000


def test_rows_that_fill_badly_get_another() -> None:
    """Three units of two thirds of a row: their tokens would fit in two."""
    [rows] = RULES.deal([RowUnit(40, 1)] * 3, 1)
    assert [row.width for row in rows] == [40, 40, 40]
