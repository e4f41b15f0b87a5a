"""Tests of learning rates: Megatron-Core's own scheduler gives the same ones."""

from typing import Any

import pytest
import torch
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from data_prep import InputError
from megatron_davinci.config import parse_recipe
from megatron_davinci.config.sections import Schedule
from megatron_davinci.train.schedule import LearningRates, learning_rate

STEPS, WARMUP, DECAY = 60, 7, 13
STYLES: list[dict[str, Any]] = [
    {"lr_decay_style": "cosine"},
    {"lr_decay_style": "linear"},
    {"lr_decay_style": "inverse-square-root"},
    {"lr_decay_style": "constant"},
    *({"lr_decay_style": "WSD", "lr_wsd_decay_style": curve, "lr_wsd_decay_iters": DECAY}
      for curve in ("exponential", "linear", "cosine", "minus_sqrt")),
]  # fmt: skip


def megatron_rate(style: dict[str, Any], step: int, minimum: float) -> float:
    """What Megatron's scheduler sets after `step` steps."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = OptimizerParamScheduler(
        optimizer, init_lr=0.0, max_lr=0.5, min_lr=minimum, lr_warmup_steps=WARMUP, lr_decay_steps=STEPS,
        lr_decay_style=style["lr_decay_style"], start_wd=0.0, end_wd=0.0, wd_incr_steps=1, wd_incr_style="constant",
        wsd_decay_steps=DECAY, lr_wsd_decay_style=style.get("lr_wsd_decay_style"),
    )  # fmt: skip
    scheduler.step(step)
    return float(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize("minimum", [0.0, 0.2])
@pytest.mark.parametrize("style", STYLES, ids=lambda style: "-".join(map(str, style.values())))
def test_rates_are_megatrons_with_a_warm_up_that_does_not_begin_at_nothing(
    style: dict[str, Any], minimum: float
) -> None:
    schedule = Schedule(lr=0.5, min_lr=minimum, lr_warmup_iters=WARMUP, **style)
    ours = [learning_rate(schedule, step, STEPS) for step in range(STEPS)]
    theirs = [megatron_rate(style, step + (step < WARMUP), minimum) for step in range(STEPS)]
    assert ours == pytest.approx(theirs, abs=1e-15)
    assert max(ours) == ours[WARMUP - 1] == 0.5


def test_the_share_of_a_decay_is_a_number_of_steps() -> None:
    by_share = Schedule(lr=1.0, lr_warmup_iters=0, lr_decay_style="WSD", lr_wsd_decay_fraction=0.25)
    by_steps = Schedule(lr=1.0, lr_warmup_iters=0, lr_decay_style="WSD", lr_wsd_decay_iters=10)
    assert [learning_rate(by_share, s, 40) for s in range(40)] == [learning_rate(by_steps, s, 40) for s in range(40)]
    assert learning_rate(by_share, 30, 40) == 1.0 > learning_rate(by_share, 31, 40)


def test_a_decay_that_has_no_room_or_nothing_to_do_is_refused(recipe_values: dict[str, Any]) -> None:
    values = {**recipe_values, "schedule": {"lr": 1.0, "lr_warmup_iters": 6, "lr_decay_style": "WSD"}}
    recipe = parse_recipe(values)
    LearningRates(recipe, [7])
    values["schedule"]["lr_wsd_decay_iters"] = 5
    with pytest.raises(InputError, match=r"warms up for 6 steps and decays over 5, and its schedule has 10: make one"):
        LearningRates(parse_recipe(values), [10])
    values["schedule"]["lr_decay_style"] = "cosine"
    with pytest.raises(InputError, match=r"lr_wsd_decay_iters has nothing to do where lr_decay_style is cosine"):
        parse_recipe(values)
