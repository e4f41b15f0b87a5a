"""Budget and difficulty as they were, beside the curves of Eq. 1, 3 and 4. Torch-free."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from megatron_davinci.config.objectives import Budget, Curriculum
from megatron_davinci.report.blocks import ChartCurve
from megatron_davinci.report.run_data import RunData, number_of
from megatron_davinci.rl.curriculum import difficulty_mix, token_budget
from megatron_davinci.rl.grading import LEVEL_NAMES


def budget_curves(run: RunData, prefix: str) -> list[ChartCurve]:
    """Mean length of thoughts, the budget of the prompts, and the ideal of Eq. 1."""
    if not run.values("budget"):
        return []
    curves = [run.curve("thought_tokens", f"{prefix}thought"), run.curve("budget", f"{prefix}budget")]
    ideal = {
        step: token_budget(step - first, steps, budget.initial, budget.gamma, budget.min)
        for first, steps, objective in _stages(run)
        if (budget := _section(Budget, objective, "budget")) is not None
        for step in range(first, first + steps)
    }
    return [*curves, *_over(run, f"{prefix}Eq. 1", ideal)]


def mix_curves(run: RunData, prefix: str) -> list[ChartCurve]:
    """Share of prompts of each difficulty, and the mix of Eq. 3 and 4."""
    names = [f"positions_{level}" for level in LEVEL_NAMES]
    if not any(run.values(name) for name in names):
        return []
    mixes = {
        step: difficulty_mix(step - first, steps, mix.early, mix.late, mix.start, mix.end)
        for first, steps, objective in _stages(run)
        if (mix := _section(Curriculum, objective, "curriculum")) is not None
        for step in range(first, first + steps)
    }
    curves = []
    for level, name in enumerate(LEVEL_NAMES):
        curves.append(_shares(run, f"{prefix}{name}", names, level))
        curves += _over(run, f"{prefix}{name}, Eq. 3", {step: mix[level] for step, mix in mixes.items()})
    return curves


def _shares(run: RunData, label: str, names: Sequence[str], level: int) -> ChartCurve:
    """Prompts of one level over all, of the steps of each bucket together."""
    shares = []
    for bucket in run.buckets:
        counts = [sum(number_of(run.steps[at], name) or 0.0 for at in bucket) for name in names]
        shares.append(counts[level] / sum(counts) if sum(counts) else None)
    return ChartCurve(label, run.axis, shares)


def _over(run: RunData, label: str, ideal: Mapping[int, float]) -> Iterator[ChartCurve]:
    """A dashed curve of what the step of each point should have; `ideal` is by steps from 0."""
    values = [ideal.get(int(step) - 1) for step in run.axis.step]
    if any(value is not None for value in values):
        yield ChartCurve(label, run.axis, values, dashed=True)


def _stages(run: RunData) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(first step, steps, objective section) of each stage, as the run was started last."""
    if not run.starts:
        return
    start = run.starts[-1]
    given = start.recipe.get("data", {}).get("stages", [])
    for stage, section in zip(start.stages, given, strict=False):
        yield stage.first_step, stage.steps, section.get("objective") or start.recipe.get("objective", {})


def _section(kind: Any, objective: dict[str, Any], name: str) -> Any:
    found = objective.get(name)
    try:
        return None if found is None else kind.model_validate(found)
    except ValidationError:  # of another version
        return None
