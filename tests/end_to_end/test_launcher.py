"""What launch starts here ends as training by hand does, over stages with other layouts and workers that die."""

import os
import signal
import subprocess
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from conftest import of_acceptance
from training import DAVINCI, finish, progress, reported, same_weights, start, write_recipe

from megatron_davinci.launch.state import state_of
from megatron_davinci.report.metrics_file import read_metrics


def launch(recipe: Path, *options: str) -> "subprocess.Popen[bytes]":
    command = [*DAVINCI, "launch", str(recipe), "--gpus-per-node", "2", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # Tests that a shell runs in its background ignore Ctrl-C, and bash cannot trap what it was born to ignore.
    listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, env=environment, start_new_session=True, preexec_fn=listening
    )


def wait_for_steps(run: Path, steps: int, launched: "subprocess.Popen[bytes]") -> None:
    while len(read_metrics(run / "metrics.jsonl")) < steps:
        assert launched.poll() is None
        time.sleep(0.01)


def two_layouts(values: dict[str, Any], folder: Path, name: str) -> Path:
    [first] = values["data"]["stages"]
    other = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 1}
    second = {**first, "name": "second", "megatron": other}
    data = {**values["data"], "stages": [{**first, "epochs": 2}, {**second, "epochs": 2}]}
    return write_recipe({**values, "data": data, "megatron": {"pipeline_model_parallel_size": 2}}, folder, name)


@of_acceptance
def test_stages_with_other_layouts_follow_each_other(recipe_values: dict[str, Any], tmp_path: Path) -> None:
    finish(launch(two_layouts(recipe_values, tmp_path, "launched")))
    by_hand = two_layouts(recipe_values, tmp_path, "by-hand")
    said = [finish(start(by_hand, 2)), finish(start(by_hand, 2))]
    assert "has another layout" in said[0] and state_of(tmp_path / "launched") == "finished"
    assert reported(tmp_path / "launched") == reported(tmp_path / "by-hand")
    assert same_weights(tmp_path / "launched", tmp_path / "by-hand")
    run = tmp_path / "launched"
    assert finish(launch(two_layouts(recipe_values, tmp_path, run.name))) == f"{run} is finished\n"


@of_acceptance
def test_a_worker_that_dies_is_started_again_and_nothing_changes(recipe_values: dict[str, Any], tmp_path: Path) -> None:
    recipe_values["data"]["stages"][0]["epochs"] = 8
    recipe_values["megatron"] = {"tensor_model_parallel_size": 2}
    launched = launch(write_recipe(recipe_values, tmp_path, "launched"))
    run = tmp_path / "launched"
    wait_for_steps(run, 8, launched)
    [victim, *_] = [
        process
        for process in psutil.Process(launched.pid).children(recursive=True)
        if process.environ().get("RANK") == "1" and "megatron_davinci" in process.cmdline()
    ]
    victim.send_signal(signal.SIGKILL)
    assert "resuming" in finish(launched)
    finish(start(write_recipe(recipe_values, tmp_path, "whole"), 2))
    assert reported(run) == reported(tmp_path / "whole") and progress(run) == progress(tmp_path / "whole")
    assert same_weights(run, tmp_path / "whole")


def test_ctrl_c_saves_and_leaves_nobody_behind(recipe_values: dict[str, Any], tmp_path: Path) -> None:
    """A terminal sends it to a whole group, and torchrun passes it on to its ranks, which may be ending by then."""
    recipe_values["data"]["stages"][0]["epochs"] = 1000
    recipe_values["checkpoint"]["save_interval"] = 10_000
    launched = launch(write_recipe(recipe_values, tmp_path, "launched"))
    run = tmp_path / "launched"
    wait_for_steps(run, 2, launched)
    children = psutil.Process(launched.pid).children(recursive=True)
    ranks = [each for each in children if "RANK" in each.environ() and "megatron_davinci" in each.cmdline()]
    assert len(ranks) == 2
    os.killpg(launched.pid, signal.SIGINT)
    deadline = time.monotonic() + 60
    while psutil.wait_procs(ranks, timeout=0.01)[1]:
        assert time.monotonic() < deadline
        for rank in ranks:
            with suppress(psutil.NoSuchProcess):
                rank.send_signal(signal.SIGINT)
    _, said = launched.communicate(timeout=60)
    assert launched.returncode == 130, said
    assert b"step" in said and b"Traceback" not in said and b"death signal" not in said, said
    assert said.count(b"Ctrl-C: saving after this step") == 1 and b"stopped by Ctrl-C" in said, said
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert progress(run)["step"] >= 2


def test_ctrl_c_twice_ends_at_once_and_leaves_nobody_behind(recipe_values: dict[str, Any], tmp_path: Path) -> None:
    """A rank that hears nothing, as one that saves for minutes, is ended too; the lock of the run goes with it."""
    recipe_values["data"]["stages"][0]["epochs"] = 1000
    launched = launch(write_recipe(recipe_values, tmp_path, "launched"))
    wait_for_steps(tmp_path / "launched", 2, launched)
    children = psutil.Process(launched.pid).children(recursive=True)
    ranks = [each for each in children if "RANK" in each.environ()]
    assert len(ranks) == 2
    for rank in ranks:
        rank.suspend()
    os.killpg(launched.pid, signal.SIGINT)
    time.sleep(1)
    os.killpg(launched.pid, signal.SIGINT)
    _, said = launched.communicate(timeout=30)
    assert launched.returncode == 130 and b"Ctrl-C once more ends at once" in said, said
    assert psutil.wait_procs(ranks, timeout=10)[1] == []
