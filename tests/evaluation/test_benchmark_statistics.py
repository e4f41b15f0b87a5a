"""Intervals and tests of two models, against values computed by hand and by brute force."""

import itertools

import pytest

from megatron_davinci.evaluate.benchmarks.statistics import bootstrap_interval, mcnemar, paired_difference


@pytest.mark.parametrize(
    "gained, lost, p", [(0, 0, 1.0), (5, 0, 2 / 32), (0, 5, 2 / 32), (1, 1, 1.0), (8, 2, 112 / 1024)]
)
def test_mcnemar_is_exact(gained: int, lost: int, p: float) -> None:
    """2 (1 + 10 + 45) / 1024 = 112 / 1024 for 8 against 2."""
    assert mcnemar(gained, lost) == pytest.approx(p)


@pytest.mark.parametrize("changed", [1, 4, 9])
def test_mcnemar_equals_counting_all_coins(changed: int) -> None:
    for lost in range(changed + 1):
        least = min(lost, changed - lost)
        tosses = [sum(coins) for coins in itertools.product((0, 1), repeat=changed)]
        extreme = sum(min(heads, changed - heads) <= least for heads in tosses)
        assert mcnemar(changed - lost, lost) == pytest.approx(extreme / len(tosses))


def test_mcnemar_holds_for_thousands_of_changes() -> None:
    assert mcnemar(4000, 4000) == 1.0 and 0.02 < mcnemar(4100, 3900) < 0.03


def test_three_questions_of_448_are_no_difference() -> None:
    """GPQA-Main's +0.67: the paper's own gain, which no test tells from chance."""
    base = [1.0] * 174 + [0.0] * 274
    new = [1.0] * 177 + [0.0] * 271
    found = paired_difference(base, new, greedy=True)
    assert found.difference == pytest.approx(3 / 448) and (found.gained, found.lost) == (3, 0)
    assert found.p_value == pytest.approx(0.25)


def test_the_bootstrap_is_of_questions_and_the_same_each_time() -> None:
    shares = [0.0, 0.5, 1.0, 1.0] * 25
    low, high = bootstrap_interval(shares)
    spread = (sum((each - 0.625) ** 2 for each in shares) / 100 / 100) ** 0.5
    assert low == pytest.approx(0.625 - 1.96 * spread, abs=0.02) and high == pytest.approx(
        0.625 + 1.96 * spread, abs=0.02
    )
    assert (low, high) == bootstrap_interval(shares[::-1])
    assert bootstrap_interval([]) == (0.0, 1.0)


def test_several_samples_have_no_mcnemar() -> None:
    found = paired_difference([0.5, 0.25], [0.75, 0.25], greedy=False)
    assert found.p_value is None and found.difference == 0.125 and found.gained == 1
    with pytest.raises(ValueError, match="same questions"):
        paired_difference([1.0], [], greedy=True)
