"""Shares with intervals, and whether two models differ on the same questions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_davinci.evaluate.tables import wilson_interval

_RESAMPLES, _SEED = 10_000, 20_240_101


@dataclass(frozen=True)
class PairedDifference:
    """Mean of `new - base` over the same questions, its 95% interval (bootstrap over questions, percentiles), and the
    p-value of McNemar's exact test where each question has one answer, else None. `gained`, `lost`: questions that one
    of the two alone has right."""

    difference: float
    low: float
    high: float
    p_value: float | None
    gained: int
    lost: int


def paired_difference(base: Sequence[float], new: Sequence[float], greedy: bool) -> PairedDifference:
    """`base`, `new` (questions,): the share of right answers to each question. Raises ValueError for none."""
    if not base or len(base) != len(new):
        raise ValueError("a paired difference needs the same questions of both, and one at least")
    differences = np.asarray(new, float) - np.asarray(base, float)
    gained, lost = int((differences > 0).sum()), int((differences < 0).sum())
    low, high = _bootstrap(differences)
    p_value = mcnemar(gained, lost) if greedy else None
    return PairedDifference(float(differences.mean()), low, high, p_value, gained, lost)


def mcnemar(gained: int, lost: int) -> float:
    """The two-sided p-value of McNemar's exact test (1947): of `gained + lost` questions that changed, as uneven a
    division as this one, or more so, by fair coins."""
    changed = gained + lost
    ways = tail = 1  # to choose 0 of all
    for chosen in range(1, min(gained, lost) + 1):
        ways = ways * (changed - chosen + 1) // chosen
        tail += ways
    return min(1.0, 2 * tail / (1 << changed))


def _bootstrap(differences: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> tuple[float, float]:
    """2.5% and 97.5% of the means of resampled questions; the same for the same differences."""
    values, counts = np.unique(differences, return_counts=True)
    random = np.random.default_rng(_SEED)
    drawn = random.multinomial(len(differences), counts / len(differences), _RESAMPLES)
    low, high = np.percentile(drawn @ values / len(differences), [2.5, 97.5])
    return float(low), float(high)


def bootstrap_interval(shares: Sequence[float]) -> tuple[float, float]:
    """95% interval of the mean of several answers' shares, over questions; where all are the same, which no resampling
    sees beyond, Wilson's; [0, 1] where there is none."""
    if len(set(shares)) < 2:
        return wilson_interval(sum(shares), len(shares))
    return _bootstrap(np.asarray(shares, float))
