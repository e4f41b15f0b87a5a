"""The positions of a held-out corpus that models are compared on: so many of each difficulty. Torch-free."""

from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep import InputError
from data_prep.corpus import Annotation, Corpus
from megatron_davinci.config.objectives import Difficulty
from megatron_davinci.rl.difficulty import (
    LEVEL_NAMES,
    NUM_LEVELS,
    askable_entropies,
    candidate_levels,
    levels_of,
    quantile_thresholds,
)


@dataclass(frozen=True, order=True)
class Position:
    """A token of a document, and its level of difficulty (0 to 2)."""

    document: int
    position: int
    level: int


def choose_positions(
    corpus: Corpus,
    difficulty: Difficulty,
    answerable: NDArray[np.bool_],
    per_level: int,
    longest: int,
    seed: int,
    left_out: Container[int] = (),
) -> list[Position]:
    """At most `per_level` of each level, drawn uniformly from all that can be asked for, in the corpus's order.

    `answerable` (ids,): tokens that an answer can name; `longest`: tokens that may stand before a position; `left_out`:
    documents. Raises InputError where the corpus is not annotated as `difficulty` says, or has nothing to ask for.
    """
    annotation = Annotation(corpus)
    if annotation.description["entropy"] != difficulty.entropy:
        raise InputError(
            f"{corpus.prefix} is annotated with entropies of kind {annotation.description['entropy']}, the recipe's "
            f"objective.difficulty.entropy is {difficulty.entropy}: make both the same"
        )
    thresholds = difficulty.thresholds
    if difficulty.quantiles is not None:
        askable = np.concatenate(list(askable_entropies(annotation, answerable)))
        thresholds = quantile_thresholds(askable, difficulty.quantiles)
    found: list[list[Position]] = [[] for _ in range(NUM_LEVELS)]
    for document in (number for number in range(len(corpus)) if number not in left_out):
        ids = corpus[document]
        levels = candidate_levels(levels_of(annotation.of(document), thresholds), answerable[ids])
        for position in np.flatnonzero(levels[: longest + 1] >= 0).tolist():
            found[levels[position]].append(Position(document, position, int(levels[position])))
    if not any(found):
        raise InputError(
            f"{corpus.prefix} has no position of entropy {thresholds[0]:g} or more, within {longest} tokens, that an "
            "answer can name: lower objective.difficulty.thresholds, or take another corpus"
        )
    draws = np.random.default_rng(seed)
    return sorted(position for level in found for position in _draw(level, per_level, draws))


def _draw(level: Sequence[Position], count: int, draws: np.random.Generator) -> list[Position]:
    return [level[number] for number in draws.permutation(len(level))[:count].tolist()]


def level_counts(positions: Sequence[Position]) -> dict[str, int]:
    """How many there are of each."""
    return {name: sum(each.level == level for each in positions) for level, name in enumerate(LEVEL_NAMES)}
