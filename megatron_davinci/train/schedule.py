"""The learning rate as a function of the step. Torch-free."""

import math

from megatron_davinci.recipe import Schedule


def learning_rate(schedule: Schedule, step: int, num_steps: int) -> float:
    """Learning rate of optimizer step `step` (from 0) of `num_steps`.

    Rises linearly over the first warmup_fraction of the steps and reaches `lr` on the last of them; then falls along
    half a cosine that would reach `min_lr` one step after the last.
    """
    warmup = math.ceil(schedule.warmup_fraction * num_steps)
    if step < warmup:
        return schedule.lr * (step + 1) / warmup
    if schedule.decay == "constant":
        return schedule.lr
    progress = (step - warmup) / max(1, num_steps - warmup)
    return schedule.min_lr + (schedule.lr - schedule.min_lr) * (1 + math.cos(math.pi * progress)) / 2
