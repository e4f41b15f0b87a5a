"""Law: a policy finds out what only the reward tells, by trees as without them."""

from pathlib import Path
from typing import Any

import language
import numpy as np
import pytest
from conftest import EFFORT

from megatron_davinci.rollout.records import read_rollouts, rollout_file
from megatron_davinci.testing import run_on_ranks

STEPS, SAME_STEPS, CHANCE = 120, 3, 0.25


@pytest.fixture(scope="module")
def curves(taught: Path) -> dict[str, list[float]]:
    """Match by step, with trees and, in the long version, without."""
    wanted: dict[str, dict[str, Any]] = {"tree": {}, "alone": {"tree": False}}
    found = {}
    for name, objective in wanted.items():
        steps = STEPS if name == "tree" or EFFORT > 1 else SAME_STEPS
        [(metrics, _)] = run_on_ranks(language.learn, 1, language.recipe(taught, STEPS, name, **objective), steps)
        found[name] = [line["reward_match"] for line in metrics]
    return found


def test_the_right_thought_is_learnt(curves: dict[str, list[float]]) -> None:
    for curve in curves.values():
        assert np.mean(curve[:SAME_STEPS]) == pytest.approx(CHANCE, abs=0.12)
        if len(curve) == STEPS:
            assert np.mean(curve[-10:]) > 0.9


def test_tokens_are_scored_at_the_temperature_at_which_they_were_sampled(taught: Path) -> None:
    values = language.recipe(taught, STEPS, "warm", temperature=0.6, policy={"kind": "grpo"})
    [([line], _)] = run_on_ranks(language.learn, 1, values, 1)
    assert line["rollout_log_prob_gap"] < 1e-5 and line["clipped_share"] == 0
    assert line["policy_loss"] == pytest.approx(0, abs=0.05)  # every ratio is 1, and advantages add up to nothing


def test_without_trees_the_same_policy_says_the_same(taught: Path, curves: dict[str, list[float]]) -> None:
    """Until rounding has grown: Adam's steps on a policy this sharp take hold of the last bit after some ten."""
    assert curves["tree"][:SAME_STEPS] == curves["alone"][:SAME_STEPS]
    for step in range(SAME_STEPS):
        (_, tree), (_, alone) = (read_rollouts(rollout_file(taught / name, step)) for name in ("tree", "alone"))
        for one, other in zip(tree, alone, strict=True):
            assert [r.tokens for r in one.responses] == [r.tokens for r in other.responses]
            for first, second in zip(one.responses, other.responses, strict=True):
                assert first.log_probs == pytest.approx(second.log_probs, abs=1e-3)
