"""The cells of a model as arrays, and paired differences with 95% intervals.

A difference is paired by position and by seed. Its interval is of 10,000 bootstrap samples of sources (files or
problems), since positions of one source are no independent draws. It holds for these seeds, whose own differences stand
beside it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from study.cells import ASKED_FREELY, UNTRAINED

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Cell = dict[str, Any]
Cells = dict[str, dict[int, Cell]]
"""Method -> seed -> its cell."""
BySeed = Mapping[int, Floats]
"""Seed -> a value of each position, or of each problem."""
ANY = -1
"""In place of a seed, where nothing was trained."""
DRAWS = 10_000
GRPO = "grpo-"
SAMPLED, LIKELIEST = "0.7", "0"
"""Temperatures that cells are asked at."""
SAME = ("corpus", "documents", "positions", "levels")


@dataclass(frozen=True)
class Units:
    """What values are of: `levels` (n,), over whose means the mean is taken, and `sources` (n,)."""

    levels: Ints
    sources: Ints


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval, and each seed's own."""

    mean: float
    low: float
    high: float
    seeds: tuple[float, ...]


def read_cells(folder: Path) -> Cells:
    """The cells of one model. ValueError where they do not belong together."""
    found: Cells = {}
    for path in sorted(folder.glob("*.json")):
        method, _, seed = path.stem.rpartition("-")
        found.setdefault(method, {})[int(seed)] = json.loads(path.read_text())
    every = [cell for cells in found.values() for cell in cells.values()]
    asked = {tuple(each[key] for key in SAME) for cell in every for each in cell.get("next_token", {}).values()}
    solved = {(each["corpus"], each["difficulties"]) for cell in every for each in cell.get("problems", {}).values()}
    if len(asked) > 1 or len(solved) > 1:
        raise ValueError(f"{folder}: cells were asked for different positions or problems")
    if len({cell["format"] for cell in every}) > 1:
        raise ValueError(f"{folder}: cells began with different checkpoints")
    return found


def outcomes(cells: Cells, method: str, temperature: str, name: str) -> dict[int, Floats]:
    """A fact about every position: a bit, or a number. What was not trained has one for all seeds."""
    found = {seed: _values(cell["next_token"][temperature][name]) for seed, cell in cells[method].items()}
    return {ANY: found[0]} if method in UNTRAINED else found


def solved(cells: Cells, method: str, temperature: str, when: str, name: str = "correct") -> dict[int, Floats]:
    """A fact about every problem, `when`: before or after reinforcement from a method's checkpoint."""
    found = cells[f"{GRPO}{method}"]
    return {seed: _values(cell["problems"][temperature][when][name]) for seed, cell in found.items()}


def positions_of(cells: Cells) -> Units:
    """What all cells are asked for."""
    asked = _first(cells, "next_token")
    return Units(np.array(list(map(int, asked["levels"]))), np.array(list(map(int, asked["sources"].split()))))


def problems_of(cells: Cells) -> Units:
    """What all cells of post-training are asked for; a problem is a source."""
    asked = _first(cells, "problems")
    levels = np.array(list(map(int, asked["difficulties"])))
    return Units(levels, np.arange(len(levels)))


def _first(cells: Cells, kind: str) -> Cell:
    every = (cell for found in cells.values() for cell in found.values())
    asked: Cell = next(cell[kind][SAMPLED] for cell in every if kind in cell)
    return asked


def start_of(method: str) -> str:
    """What a method began with, asked by the prompt that it is asked by."""
    return "format-free" if method in ASKED_FREELY else "format"


def less(one: BySeed, other: BySeed) -> dict[int, Floats]:
    """Differences, of the seeds that both have."""
    if ANY in other:
        return {seed: values - other[ANY] for seed, values in one.items()}
    return {seed: values - other[seed] for seed, values in one.items() if seed in other}


def gain(cells: Cells, method: str, temperature: str, name: str = "reasoned") -> dict[int, Floats]:
    """A method's outcomes less those of what it began with."""
    start = outcomes(cells, start_of(method), temperature, name)
    return less(outcomes(cells, method, temperature, name), start)


def at_level(values: BySeed, units: Units, level: int) -> Estimate:
    """The mean of one level."""
    chosen = units.levels == level
    of_level = Units(units.levels[chosen], units.sources[chosen])
    return estimate({seed: each[chosen] for seed, each in values.items()}, of_level)


def estimate(values: BySeed, units: Units) -> Estimate:
    """The mean over levels, as the paper's average, of the mean over seeds."""
    seeds = tuple(_mean_of_levels(each, units.levels) for each in values.values())
    low, high = paired_interval(np.mean(list(values.values()), axis=0), units)
    return Estimate(float(np.mean(seeds)), low, high, seeds)


def paired_interval(values: Floats, units: Units, seed: int = 0) -> tuple[float, float]:
    """95% bootstrap interval of the mean over levels of `values` (n,), drawing whole sources."""
    names, numbers = np.unique(units.sources, return_inverse=True)
    kinds = np.unique(units.levels)
    sums = np.zeros((len(kinds), len(names)))
    counts = np.zeros_like(sums)
    for row, level in enumerate(kinds):
        np.add.at(sums[row], numbers[units.levels == level], values[units.levels == level])
        np.add.at(counts[row], numbers[units.levels == level], 1.0)
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=DRAWS)
    means = np.mean((drawn @ sums.T) / np.maximum(1.0, drawn @ counts.T), axis=1)
    low, high = np.quantile(means, (0.025, 0.975)).tolist()
    return low, high


def _mean_of_levels(values: Floats, levels: Ints) -> float:
    return float(np.mean([values[levels == level].mean() for level in np.unique(levels)]))


def _values(text: str) -> Floats:
    return np.array(text.split() if " " in text else list(text), np.float64)
