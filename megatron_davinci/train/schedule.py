"""The learning rate as a function of the step: Megatron's curves, whose warm-up ends one step earlier. Torch-free."""

import math
from collections.abc import Callable, Mapping, Sequence

from data_prep import InputError
from megatron_davinci.config import Recipe, Schedule


class LearningRates:
    """The learning rate of every step of a recipe; `num_batches` are the steps of each stage.

    A stage with a schedule of its own follows that over its own steps; the others share the recipe's. Raises InputError
    when a schedule ends before its warm-up does.
    """

    def __init__(self, recipe: Recipe, num_batches: Sequence[int]) -> None:
        own = [stage.schedule for stage in recipe.data.stages]
        shared_steps = sum(steps for steps, schedule in zip(num_batches, own, strict=True) if schedule is None)
        self._curves: list[tuple[Schedule, int, int]] = []  # per stage: schedule, its steps, those before this stage
        before = 0
        for stage, steps in zip(recipe.data.stages, num_batches, strict=True):
            if stage.schedule is not None:
                self._curves.append((stage.schedule, steps, 0))
            else:
                self._curves.append((recipe.schedule, shared_steps, before))
                before += steps
            schedule, length, _ = self._curves[-1]
            warmup = warmup_steps(schedule, length)
            if warmup >= length:
                raise InputError(
                    f"stage {stage.name}: the learning rate warms up for {warmup} steps, and its schedule has "
                    f"{length}: warm up for fewer, or train for longer"
                )
            if schedule.lr_decay_style == "WSD" and warmup + _wsd_steps(schedule, length) > length:
                raise InputError(
                    f"stage {stage.name}: the learning rate warms up for {warmup} steps and decays over "
                    f"{_wsd_steps(schedule, length)}, and its schedule has {length}: make one of them shorter, or "
                    "train for longer"
                )

    def at(self, stage: int, step: int) -> float:
        """Learning rate of step `step` (from 0) of a stage."""
        schedule, length, before = self._curves[stage]
        return learning_rate(schedule, before + step, length)


def learning_rate(schedule: Schedule, step: int, num_steps: int) -> float:
    """Learning rate of optimizer step `step` (from 0) of `num_steps`.

    Rises linearly over the warm-up and reaches `lr` on its last step; then falls along a curve that would reach
    `min_lr` one step after the last. `inverse-square-root` falls as 1 / sqrt(step), to `min_lr` at the lowest.
    """
    warmup = warmup_steps(schedule, num_steps)
    if step < warmup:
        return schedule.lr * (step + 1) / warmup
    if schedule.lr_decay_style == "constant":
        return schedule.lr
    if schedule.lr_decay_style == "inverse-square-root":
        return max(schedule.min_lr, schedule.lr * math.sqrt(max(1, warmup) / max(1, step)))
    is_wsd = schedule.lr_decay_style == "WSD"
    begin = num_steps - _wsd_steps(schedule, num_steps) if is_wsd else warmup
    curve = _CURVES[schedule.lr_wsd_decay_style if is_wsd else schedule.lr_decay_style]
    progress = max(0.0, (step - begin) / max(1, num_steps - begin))
    return schedule.min_lr + (schedule.lr - schedule.min_lr) * curve(progress)


_CURVES: Mapping[str, Callable[[float], float]] = {
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "linear": lambda progress: 1 - progress,
    "exponential": lambda progress: 2 * 0.5**progress - 1,
    "minus_sqrt": lambda progress: 1 - math.sqrt(progress),
}
"""From the share of the decay that is done to the share of the peak that is left."""


def _wsd_steps(schedule: Schedule, num_steps: int) -> int:
    """Steps of WSD's decay."""
    if schedule.lr_wsd_decay_iters is not None:
        return schedule.lr_wsd_decay_iters
    return math.ceil(schedule.lr_wsd_decay_fraction * num_steps)


def warmup_steps(schedule: Schedule, num_steps: int) -> int:
    """Steps of the warm-up: given, or a share of all, rounded up but never all of them."""
    if schedule.lr_warmup_iters is not None:
        return schedule.lr_warmup_iters
    return min(math.ceil(schedule.lr_warmup_fraction * num_steps), num_steps - 1)
