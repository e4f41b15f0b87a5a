"""Property: a policy finds out what only the reward tells, by trees as without them."""

from pathlib import Path
from typing import Any

import language
import numpy as np
import pytest
import yaml
from conftest import EFFORT, of_acceptance
from forked import run_davinci, run_davinci_on_ranks
from test_bad_input import refuse

from data_prep.io.files import read_json, read_jsonl
from megatron_davinci.demo.reinforce import DOCUMENTS, toy_recipe
from megatron_davinci.rl.rollout_files import read_rollouts, rollout_file
from megatron_davinci.testing import run_on_ranks

STEPS, SAME_STEPS, CHANCE = 120, 8, 0.25


@pytest.fixture(scope="module")
def curves(taught: Path) -> dict[str, list[float]]:
    """Match by step, with trees and, in the long version, without."""
    wanted: dict[str, dict[str, Any]] = {"tree": {}, "alone": {"share_prefix": False}}
    found = {}
    for name, objective in wanted.items():
        steps = STEPS if name == "tree" or EFFORT > 1 else SAME_STEPS
        [metrics] = run_on_ranks(language.learn, 1, toy_recipe(taught, steps, name, **objective))
        found[name] = [line["accuracy"] for line in metrics]
    return found


def test_the_right_thought_is_learnt(curves: dict[str, list[float]]) -> None:
    for curve in curves.values():
        assert np.mean(curve[:3]) == pytest.approx(CHANCE, abs=0.12)
        if len(curve) == STEPS:
            assert np.mean(curve[-10:]) > 0.9
    if EFFORT > 1:  # rounding has grown, and the two have still learnt the same, just as fast
        tree, alone = (np.reshape(curves[name], (-1, 10)).mean(1) for name in ("tree", "alone"))
        assert np.abs(tree - alone).max() < 0.06


def test_tokens_are_scored_at_the_temperature_at_which_they_were_sampled(taught: Path) -> None:
    values = toy_recipe(taught, 1, "warm", temperature=0.6, policy={"kind": "grpo"})
    [[line]] = run_on_ranks(language.learn, 1, values)
    assert line["rollout_log_prob_diff"] < 1e-5 and line["clip_fraction"] == 0
    assert line["policy_loss"] == pytest.approx(0, abs=0.05)  # every ratio is 1, and advantages add up to nothing


def test_without_trees_the_same_policy_says_the_same(taught: Path, curves: dict[str, list[float]]) -> None:
    """Until rounding has grown: Adam's steps on a policy this sharp take hold of the last bit after some ten."""
    assert curves["tree"][:SAME_STEPS] == curves["alone"][:SAME_STEPS]
    for step in range(SAME_STEPS):
        (_, tree), (_, alone) = (
            read_rollouts(rollout_file(taught / name / "rollouts", step)) for name in ("tree", "alone")
        )
        for one, other in zip(tree, alone, strict=True):
            assert [r.tokens for r in one.responses] == [r.tokens for r in other.responses]
            for first, second in zip(one.responses, other.responses, strict=True):
                assert first.log_probs == pytest.approx(second.log_probs, abs=1e-3)


@of_acceptance
def test_evaluation_shows_what_was_learnt(taught: Path, curves: dict[str, list[float]], tmp_path: Path) -> None:
    """The same positions to both: with a thought, chance before and nearly always right after."""
    assert len(curves["tree"]) == STEPS
    recipe = tmp_path / "recipe.yaml"
    values = toy_recipe(taught, 1, "-")
    recipe.write_text(yaml.safe_dump(values))
    models = ("--model", f"base={taught / 'hf'}", "--model", f"rmt={taught / 'tree'}")
    given = ("--corpus", str(taught / "docs"), *models, "--temperature", "1")
    said = refuse("eval", "next-token", recipe, *given, "--out", tmp_path / "eval", cwd=tmp_path)
    assert "docs holds nothing but documents that the recipe trains on" in said
    values["data"]["stages"][0]["blend"][0]["corpus"] = "elsewhere"
    recipe.write_text(yaml.safe_dump(values))
    command = ("eval", "next-token", recipe, *given, "--out")
    done = run_davinci(*command, tmp_path / "eval")
    done.check_returncode()
    results = read_json(tmp_path / "eval" / "results.json")
    asked = sum(results["positions"].values())
    assert asked >= DOCUMENTS // 2 and (tmp_path / "eval" / "tables.md").read_text() in done.stdout
    base, learnt = (results["models"][name]["reasoned"]["average"] for name in ("base", "rmt"))
    assert base < 0.7 and learnt > 0.85
    for name in ("base", "rmt"):
        lines = list(read_jsonl(tmp_path / "eval" / f"{name}.jsonl.zst"))
        assert len(lines) == asked and all("</think>" in line["response"] for line in lines if line["closed"])
    assert "already exists" in refuse("eval", "next-token", recipe, *given, "--out", tmp_path / "eval", cwd=tmp_path)
    # replicas answer different numbers of batches, and none waits for another's weights
    shared = dict.fromkeys(("use_distributed_optimizer", "overlap_grad_reduce", "overlap_param_gather"), True)
    recipe.write_text(yaml.safe_dump({**values, "megatron": shared}))
    run_davinci_on_ranks(2, *command, tmp_path / "both", "--documents", "6").check_returncode()
    for name in ("base", "rmt"):
        alone, both = (list(read_jsonl(tmp_path / out / f"{name}.jsonl.zst")) for out in ("eval", "both"))
        assert [line["response"] for line in alone] == [line["response"] for line in both]
