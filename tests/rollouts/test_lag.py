"""Property: with max_lag 1 responses are one step old, say so, and a killed run still ends as an unkilled one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import of_acceptance
from language import write_recipe
from training import kill_when, progress, reported, same_weights, start, train

from data_prep import InputError
from data_prep.io.files import jsonl_writer, read_json, read_jsonl
from megatron_davinci.config import parse_recipe
from megatron_davinci.config.objectives import Rmt
from megatron_davinci.demo.reinforce import toy_recipe
from megatron_davinci.rl.inputs import check_engine
from megatron_davinci.rl.replay import Replay
from megatron_davinci.rl.rollout_files import (
    Group,
    PromptSpec,
    Response,
    read_header,
    read_rollouts,
    rollout_file,
    write_rollouts,
)
from megatron_davinci.weights.checkpoint_files import PROGRESS_FILE

STEPS = 6
Write = Callable[..., Path]


@pytest.fixture
def write(taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))

    def write(name: str, **changes: Any) -> Path:
        rollouts = {"engine": "ahead_engine:AheadRollouts"}
        values = toy_recipe(taught, STEPS, name, policy={"kind": "grpo"}, rollouts=rollouts)
        values["checkpoint"]["save_interval"] = 2
        return write_recipe(tmp_path, name, values, **changes)

    return write


@of_acceptance
def test_a_killed_run_with_lag_ends_as_an_uninterrupted_one(write: Write, tmp_path: Path) -> None:
    train(write("whole"), 1)
    killed, run = write("killed"), tmp_path / "killed"
    written = [rollout_file(run / "rollouts", step) for step in range(STEPS)]
    kill_when(start(killed, 1), (run / "latest").is_file)  # the third step's answers are there, and kept
    assert written[2].is_file() and read_header(written[2])["policy_step"] == 1
    header, *lines = read_jsonl(written[2])
    kill_when(start(killed, 1), lambda: len(reported(run)) >= 4 and written[4].is_file())
    train(killed, 1)
    assert list(read_jsonl(written[2])) == [header, *lines], "the file was kept"
    assert reported(run) == reported(tmp_path / "whole") and progress(run) == progress(tmp_path / "whole")
    assert same_weights(tmp_path / "whole", run)
    for step, path in enumerate(written):
        assert read_rollouts(path) == read_rollouts(rollout_file(tmp_path / "whole" / "rollouts", step))
        assert read_header(path)["policy_step"] == max(0, step - 1)
    assert [line["rollout_lag"] for line in reported(run)] == [0, 1, 1, 1, 1, 1]
    kept = read_json(run / f"step_{STEPS:07d}" / PROGRESS_FILE)["objectives"]["0"]["rollout_weights"]
    assert kept[str(STEPS - 2)] == read_header(written[-1])["weights"]


@pytest.mark.parametrize("weights, policy_step", [("0123456789abcdef", 1), ("0123456789abcdef", 2)])
def test_a_file_by_weights_that_the_run_does_not_know_is_sampled_again(
    weights: str, policy_step: int, write: Write, tmp_path: Path
) -> None:
    recipe, run = write("run"), tmp_path / "run"
    kill_when(start(recipe, 1), (run / "latest").is_file)
    path = rollout_file(run / "rollouts", 2)
    header, *lines = read_jsonl(path)
    path.unlink()
    with jsonl_writer(path) as writer:
        for line in ({**header, "weights": weights, "policy_step": policy_step}, *lines):
            writer.write(line)
    said = train(recipe, 1)
    assert f"was written by weights that this run does not know ({weights}): sampling it again" in said
    assert read_header(path)["policy_step"] == 2, "by the policy that is there"


def test_a_damaged_file_is_sampled_again_by_all_ranks(write: Write, tmp_path: Path) -> None:
    recipe, run = write("run"), tmp_path / "run"
    kill_when(start(recipe, 1), (run / "latest").is_file)
    path = rollout_file(run / "rollouts", 2)
    path.write_bytes(path.read_bytes()[:7])
    assert "step_0000002.jsonl.zst" in (said := train(recipe, 2)) and "sampling it again" in said
    assert read_header(path)["policy_step"] == 2 and len(reported(run)) == STEPS


def test_a_file_that_is_too_old_is_refused(tmp_path: Path) -> None:
    spec = PromptSpec(3, 0, 7, 1, 20, "ab")
    group = Group(spec, [Response([5], [-0.5], True)] * 2)
    for lag, policy_step, refused in ((1, 3, False), (1, 2, True), (0, 3, True), (None, 0, False)):
        replay = Replay(tmp_path / f"{lag}-{policy_step}", "t", 2, 9, 100, False, False, max_lag=lag)
        write_rollouts(replay.file(4), {"step": 4, "policy_step": policy_step, "tokenizer": "t"}, [group])
        if not refused:
            assert replay.read(4, [spec]) == [group]
            continue
        with pytest.raises(InputError, match=rf"objective.rollouts.max_lag is {lag}; remove the file"):
            replay.read(4, [spec])


@pytest.mark.parametrize(
    "policy, bf16, sentence",
    [
        ({"kind": "reinforce"}, False, "max_lag is 1, and objective.policy.kind reinforce needs responses of the very"),
        ({"kind": "grpo"}, True, "in bf16 differ from the trainer's by 0.2 nats at times: set .*importance_ratio_cap"),
        ({"kind": "grpo"}, False, None),
        ({"kind": "grpo", "importance_ratio_cap": 2.0}, True, None),
    ],
)
def test_what_needs_a_correction_is_refused_without(
    policy: dict[str, Any], bf16: bool, sentence: str | None, recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    rollouts = {"engine": "vllm", "max_lag": 1, "servers": str(tmp_path)}
    objective = {"kind": "rmt", "policy": policy, "rollouts": rollouts}
    recipe = parse_recipe({**recipe_values, "objective": objective, "megatron": {"bf16": bf16}})
    stage = recipe.stage(0)
    assert isinstance(stage.objective, Rmt)
    if sentence is None:
        check_engine(stage.objective, stage, None)  # type: ignore[arg-type]
        return
    with pytest.raises(InputError, match=sentence):
        check_engine(stage.objective, stage, None)  # type: ignore[arg-type]


def test_limits_of_the_difference_follow_from_the_precision(recipe_values: dict[str, Any]) -> None:
    found = []
    for given in ({}, {"max_lag": 1}, {"max_lag": 1, "max_log_prob_diff": 0.5}):
        objective = {"kind": "rmt", "rollouts": {"engine": "vllm", **given}}
        rollouts = parse_recipe({**recipe_values, "objective": objective}).stage(0).objective.rollouts  # type: ignore[attr-defined]
        found.append((rollouts.log_prob_limit(False), rollouts.log_prob_limit(True)))
    assert found == [(1e-3, 0.1), (1.0, 1.0), (0.5, 0.5)]
    with pytest.raises(InputError, match=r"objective\.rollouts\.num_servers"):
        parse_recipe({**recipe_values, "objective": {"kind": "rmt", "rollouts": {"engine": "vllm", "num_servers": 2}}})
