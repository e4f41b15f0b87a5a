"""Properties of reinforcement through vLLM as a user starts it: it learns, and a killed run ends as an unkilled one."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, median
from typing import Any

import pytest
import vllm_runs
import yaml
from conftest import of_acceptance
from language import teach, write_recipe
from training import finish, kill_when, reported, same_weights, start

from data_prep.io.files import jsonl_writer, read_json, read_jsonl
from megatron_davinci.demo.reinforce import toy_recipe
from megatron_davinci.rl.rollout_files import read_rollouts, rollout_file
from megatron_davinci.testing import run_on_ranks
from megatron_davinci.weights.checkpoint_files import PROGRESS_FILE

pytestmark = [of_acceptance, vllm_runs.needs_vllm]
STEPS, SEEDS = 160, (1, 2, 3)
POLICY = {0: {"kind": "reinforce"}, 1: {"kind": "grpo"}}


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the toy language as everywhere, with heads that vLLM serves on a CPU."""
    folder = tmp_path_factory.mktemp("language")
    run_on_ranks(teach, 1, folder, {"num_attention_heads": 2})
    return folder


@pytest.fixture(scope="module")
def servers(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with the address of a server for the toy language's model."""
    folder = tmp_path_factory.mktemp("servers")
    with vllm_runs.server_for(folder, toy_recipe(taught, 1, "-")):
        yield folder / "servers"


def write(folder: Path, taught: Path, servers: Path, name: str, steps: int, lag: int, **changes: Any) -> Path:
    rollouts = {"engine": "vllm", "servers": str(servers), "max_lag": lag}
    values = toy_recipe(taught, steps, name, policy=POLICY[lag], rollouts=rollouts)
    return write_recipe(folder, name, values, **changes)


@pytest.mark.parametrize("lag", [0, 1])
def test_the_right_thought_is_learnt(lag: int, taught: Path, servers: Path, tmp_path: Path) -> None:
    ends = []
    for seed in SEEDS:
        cosine = {"schedule": {"lr_decay_style": "cosine"}}
        recipe = write(tmp_path, taught, servers, f"seed{seed}", STEPS, lag, **cosine)
        finish(start(recipe, 1, f"seed={seed}"))
        lines = reported(tmp_path / f"seed{seed}")
        assert fmean(line["accuracy"] for line in lines[:3]) == pytest.approx(0.25, abs=0.12)
        assert {line["rollout_lag"] for line in lines[1:]} == {lag} and lines[0]["rollout_lag"] == 0
        assert len({line["rollout_weights"] for line in lines}) == STEPS - lag
        if lag == 0:
            assert max(line.get("rollout_log_prob_diff", 0.0) for line in lines) < 1e-5
        ends.append(fmean(line["accuracy"] for line in lines[-10:]))
    print(f"lag {lag}: accuracy of the last ten steps by seed {ends}, median {median(ends):.3f} (above 0.95)")
    assert median(ends) > 0.95


@pytest.mark.parametrize("lag", [0, 1])
def test_a_killed_run_ends_as_an_uninterrupted_one(lag: int, taught: Path, servers: Path, tmp_path: Path) -> None:
    steps, saving = 6, {"checkpoint": {"save_interval": 2}}
    finish(start(write(tmp_path, taught, servers, "whole", steps, lag, **saving), 1))
    killed, run = write(tmp_path, taught, servers, "killed", steps, lag, **saving), tmp_path / "killed"
    written = [rollout_file(run / "rollouts", step) for step in range(steps)]
    kill_when(start(killed, 1), lambda: (run / "step_0000002").is_dir())
    kill_when(start(killed, 1), written[3].is_file)
    kill_when(start(killed, 1), lambda: len(reported(run)) >= 5)
    finish(start(killed, 1))
    assert reported(run) == reported(tmp_path / "whole")
    assert same_weights(tmp_path / "whole", run)
    for step in range(steps):
        one, other = (read_rollouts(rollout_file(tmp_path / name / "rollouts", step)) for name in ("whole", "killed"))
        assert one == other and one[0]["policy_step"] == max(0, step - lag)
        assert one[0]["engine_version"].startswith("0.32.") and one[0]["dtype"] == "float32"
    kept = read_json(run / f"step_{steps:07d}" / PROGRESS_FILE)["objectives"]["0"]["rollout_weights"]
    assert kept[str(steps - 1 - lag)] == read_rollouts(written[-1])[0]["weights"]


def test_on_two_replicas_the_same_is_said(taught: Path, servers: Path, tmp_path: Path) -> None:
    for name, ranks in (("one", 1), ("two", 2)):
        finish(start(write(tmp_path, taught, servers, name, 2, 0), ranks))
    for step in range(2):
        one, two = (read_rollouts(rollout_file(tmp_path / name / "rollouts", step)) for name in ("one", "two"))
        tokens = [[[list(r.tokens) for r in group.responses] for group in groups] for _, groups in (one, two)]
        assert tokens[0] == tokens[1]
        assert step or one[0]["weights"] == two[0]["weights"]


def test_a_file_by_other_weights_is_sampled_again(taught: Path, servers: Path, tmp_path: Path) -> None:
    recipe, run = write(tmp_path, taught, servers, "run", 4, 0, checkpoint={"save_interval": 2}), tmp_path / "run"
    kill_when(start(recipe, 1), lambda: rollout_file(run / "rollouts", 2).is_file())
    other = rollout_file(run / "rollouts", 2)
    header, *lines = read_jsonl(other)
    other.unlink()

    with jsonl_writer(other) as writer:
        for line in ({**header, "weights": "0123456789abcdef"}, *lines):
            writer.write(line)
    said = finish(start(recipe, 1))
    assert "step_0000002.jsonl.zst was written by weights that this run does not know (0123456789abcdef)" in said
    assert read_rollouts(other)[0]["weights"] == header["weights"]


def test_an_evaluation_through_a_server_is_the_trainers_own(taught: Path, tmp_path: Path) -> None:
    """`davinci serve` of a Hugging Face directory, asked by `eval next-token` and `sample`."""
    recipe = tmp_path / "recipe.yaml"
    values = toy_recipe(taught, 1, "-")
    values["data"]["stages"][0]["blend"][0]["corpus"] = "elsewhere"
    recipe.write_text(yaml.safe_dump(values))
    davinci = [sys.executable, "-m", "megatron_davinci"]
    where = ["--port", "0", "--environment", str(vllm_runs.ENVIRONMENT), "--dtype", "float32"]
    process = subprocess.Popen([*davinci, "serve", str(taught / "hf"), *where], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = process.stderr.readline()
    assert said.startswith("hf is served at http://127.0.0.1:"), said
    address = said.split()[4].rstrip(";")
    try:
        ask = ["eval", "next-token", str(recipe), "--corpus", str(taught / "docs"), "--temperature", "0"]
        models = ["--model", f"own={taught / 'hf'}", "--model", f"served={address}"]
        subprocess.run([*davinci, *ask, *models, "--out", str(tmp_path / "eval")], check=True, capture_output=True)
        own, served = (list(read_jsonl(tmp_path / "eval" / f"{name}.jsonl.zst")) for name in ("own", "served"))
        assert len(own) > 4 and own == served
        sample = [*davinci, "sample", address, " red opens", "--max-tokens", "4"]
        told = subprocess.run(sample, check=True, capture_output=True, text=True).stdout
        assert told.strip()
    finally:
        process.terminate()
        process.wait(30)
    assert process.returncode == 0
