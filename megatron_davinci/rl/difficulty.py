"""Which positions of a document are asked for: candidates by difficulty, and a draw from them.

A position's difficulty is the entropy, in nats, of an annotating model's prediction of the token there.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_prep.corpus import Annotation
from data_prep.io.arrays import Float32s
from megatron_davinci.rl.curriculum import Mix, over_levels_with_candidates

Levels = npt.NDArray[np.int8]
_STRETCH = 1 << 24  # tokens that are looked at together
NONE = -1
LEVEL_NAMES = ("easy", "medium", "hard")
NUM_LEVELS = len(LEVEL_NAMES)


class Drawn(NamedTuple):
    """`positions` in ascending order, their `levels`; `empty_levels`: draws for which a wanted level had nothing."""

    positions: list[int]
    levels: list[int]
    empty_levels: int


def levels_of(entropies: Float32s, thresholds: tuple[float, float, float]) -> Levels:
    """Level of each position: easy from the first threshold on, medium from the second, hard from the third, or -1."""
    return (np.searchsorted(np.asarray(thresholds), entropies, side="right") - 1).astype(np.int8)


def quantile_thresholds(entropies: Float32s, quantiles: tuple[float, float, float]) -> tuple[float, float, float]:
    """Thresholds that leave the given shares of positions below them; 0 where there are no positions."""
    if not len(entropies):
        return 0.0, 0.0, 0.0
    easy, medium, hard = np.quantile(entropies.astype(np.float64), quantiles).tolist()
    return easy, medium, hard


def askable_entropies(annotation: Annotation, answerable: npt.NDArray[np.bool_]) -> Iterator[Float32s]:
    """Entropies of a corpus's tokens that can be asked for, a stretch at a time: those that an answer can name
    (`answerable` (ids,)), without the first of each document."""
    corpus = annotation.corpus
    for begin in range(0, len(corpus.tokens), _STRETCH):
        end = min(begin + _STRETCH, len(corpus.tokens))
        askable = answerable[corpus.tokens[begin:end]]
        first, stop = np.searchsorted(corpus.starts, (begin, end))
        askable[corpus.starts[first:stop][corpus.lengths[first:stop] > 0] - begin] = False
        yield annotation.entropies[begin:end][askable]


def candidate_levels(levels: Levels, answerable: npt.NDArray[np.bool_]) -> Levels:
    """Levels (tokens,) with -1 for what cannot be asked for: the first token, and those that no answer can name."""
    kept = np.where(answerable, levels, NONE).astype(np.int8)
    kept[:1] = NONE
    return kept


def draw_positions(levels: Levels, mix: Mix | None, count: int, key: Sequence[int]) -> Drawn:
    """At most `count` different positions: each time a level by the mix, then one of its candidates uniformly.

    Without a mix, levels have as much of it as they have candidates: any candidate is as likely as another.

    Depends on levels, mix and `key` (seed, stage, epoch, document), so that a resumed run draws the same.
    """
    philox = np.random.Philox(key=np.random.SeedSequence(list(key)).generate_state(2, np.uint64))
    left = [np.flatnonzero(levels == level).tolist() for level in range(NUM_LEVELS)]
    found: list[tuple[int, int]] = []
    empty = 0
    while len(found) < count and any(left):
        sizes = (len(left[0]), len(left[1]), len(left[2]))
        # 53 bits of a raw draw as a number below 1: no release of numpy changes that
        which, where = ((philox.random_raw(2) >> np.uint64(11)) * 2.0**-53).tolist()
        wanted = mix or (sizes[0] / sum(sizes), sizes[1] / sum(sizes), sizes[2] / sum(sizes))
        level = _level_at(over_levels_with_candidates(wanted, sizes), which)
        empty += not sizes[_level_at(wanted, which)]
        found.append((left[level].pop(int(where * sizes[level])), level))
    found.sort()
    return Drawn([position for position, _ in found], [level for _, level in found], empty)


def _level_at(mix: Mix, point: float) -> int:
    """The level in whose share of [0, 1) a point lies; never one without a share."""
    reached = 0.0
    last = 0
    for level, share in enumerate(mix):
        if share > 0.0:
            last = level
            reached += share
            if point < reached:
                return level
    return last
