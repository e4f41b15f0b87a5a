"""Budget and difficulty as they were, beside the curves of Eq. 1, 3 and 4. Torch-free."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from data_prep import InputError
from megatron_davinci.config.objectives import Budget, Curriculum
from megatron_davinci.config.section import Section
from megatron_davinci.report.blocks import ChartCurve
from megatron_davinci.report.run_data import RunData, number_of
from megatron_davinci.rl.curriculum import difficulty_mix, token_budget
from megatron_davinci.rl.difficulty import LEVEL_NAMES

_Section = TypeVar("_Section", bound=Section)


class _Stage(BaseModel):
    objective: dict[str, Any] | None = None


class _Data(BaseModel):
    stages: list[_Stage]


class _Recipe(BaseModel):
    """The parts of a recipe, as a run has written it down, that say what was to be asked for."""

    data: _Data
    objective: dict[str, Any] = {}


def budget_curves(run: RunData, prefix: str) -> list[ChartCurve]:
    """Mean length of thoughts, the budget of the prompts, and the ideal of Eq. 1."""
    if not run.values("budget"):
        return []
    measured = [run.curve(metric, f"{prefix}{metric.replace('_', ' ')}") for metric in ("thought_tokens", "budget")]
    ideal = _ideal(run, Budget, "budget", lambda b, step, steps: token_budget(step, steps, b.initial, b.gamma, b.min))
    return [*measured, *_drawn(run, ideal, f"{prefix}Eq. 1")]


def mix_curves(run: RunData, prefix: str) -> list[ChartCurve]:
    """Share of prompts of each difficulty, and the mix of Eq. 3 and 4."""
    names = [f"positions_{level}" for level in LEVEL_NAMES]
    if not any(run.values(name) for name in names):
        return []
    mixes = _ideal(
        run,
        Curriculum,
        "curriculum",
        lambda c, step, steps: difficulty_mix(step, steps, c.early, c.late, c.start, c.end),
    )
    counts = [[number_of(line, name) or 0.0 for name in names] for line in run.steps]
    curves = []
    for level, name in enumerate(LEVEL_NAMES):
        shares = [of_step[level] / sum(of_step) if sum(of_step) else None for of_step in counts]
        curves.append(run.mean_curve(shares, f"{prefix}{name}"))
        curves += _drawn(run, [mix and mix[level] for mix in mixes], f"{prefix}{name}, Eq. 3")
    return curves


def _ideal(run: RunData, kind: type[_Section], name: str, of: Callable[[_Section, int, int], Any]) -> list[Any]:
    """What a formula (section, step of the stage from 0, steps of the stage) gives for each step of the run.

    None where the recipe has no such section, or is of another version.
    """
    stages = list(_stages(run, kind, name))
    found = []
    for line in run.steps:
        step = line["step"] - 1
        inside = ((first, steps, section) for first, steps, section in stages if first <= step < first + steps)
        first, steps, section = next(inside, (0, 0, None))
        found.append(None if section is None else of(section, step - first, steps))
    return found


def _drawn(run: RunData, ideal: list[float | None], label: str) -> Iterator[ChartCurve]:
    if any(value is not None for value in ideal):
        yield run.mean_curve(ideal, label, dashed=True)


def _stages(run: RunData, kind: type[_Section], name: str) -> Iterator[tuple[int, int, _Section]]:
    """(first step, steps, section of the objective) of each stage that has one, as the run was started last."""
    for start in run.starts[-1:]:
        try:
            recipe = _Recipe.model_validate(start.recipe)
            for stage, given in zip(start.stages, recipe.data.stages, strict=False):
                section = (given.objective or recipe.objective).get(name)
                if section is not None:
                    yield stage.first_step, stage.steps, kind.model_validate(section)
        except (ValidationError, InputError):  # of another version
            return
