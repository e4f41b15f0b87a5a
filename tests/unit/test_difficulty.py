"""Properties of the positions that RMT asks for: their levels, what is no candidate, and how they are drawn."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_davinci.rl.difficulty import (
    NONE,
    candidate_levels,
    draw_positions,
    levels_of,
    quantile_thresholds,
)

THRESHOLDS = (0.5, 1.0, 1.5)


def test_levels_begin_at_their_thresholds() -> None:
    entropies = np.array([0.0, 0.49, 0.5, 0.99, 1.0, 1.49, 1.5, 9.0], np.float32)
    assert levels_of(entropies, THRESHOLDS).tolist() == [-1, -1, 0, 0, 1, 1, 2, 2]


def test_quantiles_leave_their_shares_below() -> None:
    entropies = np.random.default_rng(0).exponential(size=10_000).astype(np.float32)
    levels = levels_of(entropies, quantile_thresholds(entropies, (0.5, 0.8, 0.95)))
    assert [int((levels == level).sum()) for level in (-1, 0, 1, 2)] == pytest.approx([5000, 3000, 1500, 500], abs=2)


def test_what_cannot_be_asked_for_is_no_candidate() -> None:
    answerable = np.array([True, True, False, True, False])
    levels = candidate_levels(np.array([1, 0, 1, 2, NONE], np.int8), answerable)
    assert levels.tolist() == [NONE, 0, NONE, 2, NONE]  # nothing comes before the first


@given(st.lists(st.integers(-1, 2), max_size=30), st.integers(1, 6), st.integers(0, 99))
def test_a_draw_takes_different_candidates_and_comes_again(levels: list[int], count: int, seed: int) -> None:
    array = np.array(levels, np.int8)
    drawn = draw_positions(array, (0.6, 0.3, 0.1), count, [seed, 1])
    assert drawn == draw_positions(array, (0.6, 0.3, 0.1), count, [seed, 1])
    assert len(set(drawn.positions)) == len(drawn.positions) == min(count, sum(level >= 0 for level in levels))
    assert drawn.positions == sorted(drawn.positions)
    assert [levels[position] for position in drawn.positions] == drawn.levels


def test_levels_come_as_the_mix_says_and_positions_uniformly() -> None:
    levels = np.repeat(np.array([0, 1, 2], np.int8), [10, 40, 50])
    draws = [draw_positions(levels, (0.6, 0.3, 0.1), 1, [7, number]) for number in range(6000)]
    by_level = Counter(draw.levels[0] for draw in draws)
    assert [by_level[level] / 6000 for level in range(3)] == pytest.approx([0.6, 0.3, 0.1], abs=0.02)
    easy = Counter(draw.positions[0] for draw in draws if draw.levels[0] == 0)
    assert len(easy) == 10 and max(easy.values()) / min(easy.values()) < 1.4


@pytest.mark.parametrize(
    "mix, empty, expected",
    [((0.6, 0.3, 0.1), 0, (0.0, 0.75, 0.25)), ((0.1, 0.3, 0.6), 2, (0.25, 0.75, 0.0))],
)
def test_the_others_keep_their_proportions(mix: Any, empty: int, expected: tuple[float, ...]) -> None:
    levels = np.repeat(np.array([level for level in range(3) if level != empty], np.int8), 50)
    draws = [draw_positions(levels, mix, 1, [number]) for number in range(4000)]
    found = Counter(draw.levels[0] for draw in draws)
    assert [found[level] / 4000 for level in range(3)] == pytest.approx(expected, abs=0.03)
    assert sum(draw.empty_levels for draw in draws) / 4000 == pytest.approx(mix[empty], abs=0.03)


def test_without_a_mix_any_candidate_is_as_likely() -> None:
    levels = np.repeat(np.array([0, 1, 2, NONE], np.int8), [10, 30, 20, 40])
    draws = [draw_positions(levels, None, 1, [number]) for number in range(6000)]
    found = Counter(draw.positions[0] for draw in draws)
    assert sorted(found) == list(range(60)) and max(found.values()) < 150 and not any(d.empty_levels for d in draws)


def test_an_empty_level_leaves_its_share_to_the_others_and_is_counted() -> None:
    levels = np.repeat(np.array([0, 2], np.int8), 500)
    draws = [draw_positions(levels, (0.3, 0.4, 0.3), 1, [number]) for number in range(2000)]
    assert sum(draw.empty_levels for draw in draws) / 2000 == pytest.approx(0.4, abs=0.04)
    assert sum(draw.levels[0] for draw in draws) / 4000 == pytest.approx(0.5, abs=0.04)
    assert draw_positions(np.full(5, NONE, np.int8), (0.3, 0.4, 0.3), 2, [1]).positions == []
