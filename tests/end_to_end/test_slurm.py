"""Property: under a real Slurm a job that is told to stop saves, requeues itself, and ends as if nothing had been."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import EFFORT, of_acceptance, write_model
from slurm_cluster import slurm, why_none
from training import DAVINCI, finish, progress, reported, same_weights, start

from data_prep.corpus import Corpus
from megatron_davinci.report.metrics_file import read_metrics

ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
PER_JOB = 120 if EFFORT == 1 else 400  # seconds


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    if reason := why_none():
        pytest.skip(reason)
    with slurm() as environment:
        yield environment


def said(command: list[str], environment: dict[str, str], folder: Path | None = None) -> str:
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait(happened: Callable[[], Any], log: Path) -> None:
    deadline = time.monotonic() + PER_JOB
    while not happened():
        assert time.monotonic() < deadline, log.read_text() if log.is_file() else "no log"
        time.sleep(0.1)


def write(values: dict[str, Any], folder: Path, name: str) -> Path:
    """A run of 24 steps, long enough to be stopped in its middle."""
    values["data"]["stages"][0]["epochs"] = 24
    megatron = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
    checkpoint = {"dir": str(folder / name), "save_interval": 10_000, "save_total_limit": 1}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**values, "megatron": megatron, "checkpoint": checkpoint}))
    return path


@of_acceptance
def test_a_job_saves_requeues_itself_and_ends_as_uninterrupted(
    cluster: dict[str, str], recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    """Short: the signal is sent as Slurm would send it; in full, a limit of a minute sends it."""
    if EFFORT > 1:  # steps of a second, and so more than half a minute of them
        write_model(tmp_path / "model", hidden_size=1024, intermediate_size=4096)
    recipe, run = write(recipe_values, tmp_path, "run"), tmp_path / "run"
    [job] = launch(recipe, cluster, "--time", "1" if EFFORT > 1 else "10", "--warning", "30")
    log = tmp_path / f"slurm-run-{job}.log"
    if EFFORT == 1:
        wait(lambda: len(read_metrics(run / "metrics.jsonl")) >= 3, log)
        said(["scancel", "--signal=USR1", job], cluster)  # to the job's steps, as --signal=USR1@30 does
    wait(lambda: (run / "latest").is_file(), log)
    first = progress(run)
    assert 1 <= first["step"] < first["num_steps"]
    wait(lambda: "stopped by SIGUSR1" in log.read_text(), log)
    wait(lambda: ended(job, cluster), log)
    assert "JobState=COMPLETED" in state_of(job, cluster), log.read_text()
    finish(start(write(recipe_values, tmp_path, "whole"), 2))
    assert reported(run) == reported(tmp_path / "whole") and progress(run) == progress(tmp_path / "whole")
    assert same_weights(run, tmp_path / "whole")


@of_acceptance
def test_the_next_job_of_a_chain_goes_on(
    cluster: dict[str, str], recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    recipe, run = write(recipe_values, tmp_path, "run"), tmp_path / "run"
    first, second = launch(recipe, cluster, "--chain", "2")
    logs = {job: tmp_path / f"slurm-run-{job}.log" for job in (first, second)}
    wait(lambda: len(read_metrics(run / "metrics.jsonl")) >= 3, logs[first])
    said(["scancel", "--signal=USR1", first], cluster)
    wait(lambda: ended(second, cluster), logs[second])
    assert "the next job of the chain goes on" in logs[first].read_text()
    assert "resuming" in logs[second].read_text() and "Requeue=0" in state_of(first, cluster)
    assert [line["step"] for line in reported(run)] == list(range(1, 25))
    assert progress(run)["step"] == 24


@of_acceptance
def test_a_chain_ends_where_its_jobs_can_only_fail(
    cluster: dict[str, str], recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    recipe_values["data"]["stages"][0]["blend"] = [{"corpus": str(tmp_path / "absent")}]
    first, second = launch(write(recipe_values, tmp_path, "run"), cluster, "--chain", "2")
    logs = {job: tmp_path / f"slurm-run-{job}.log" for job in (first, second)}
    wait(lambda: ended(second, cluster), logs[second])
    assert "not started again: exit code 2" in logs[first].read_text()
    assert logs[second].read_text() == "the job before gave up\n"


def launch(recipe: Path, cluster: dict[str, str], *options: str) -> list[str]:
    """The numbers of the jobs that `davinci launch` has submitted, of two ranks each."""
    where = ["--nodes", "1", "--gpus-per-node", "2", "--cpu", "--slurm"]
    command = [*DAVINCI, "launch", str(recipe), *where, *options]
    told = said(command, {**cluster, "OMP_NUM_THREADS": "1"}, recipe.parent)
    return told.partition(":")[0].removeprefix("submitted ").split(", ")


def ended(job: str, cluster: dict[str, str]) -> bool:
    """Is it over? Until then it need not rest after a requeue, for two minutes, as Slurm would have it."""
    state = state_of(job, cluster)
    if "JobState=PENDING" in state:
        time.sleep(4)  # until the job that requeued itself has been ended, or its end would be the new one's
        subprocess.run(
            ["scontrol", "update", f"jobid={job}", "StartTime=now", "TimeLimit=60"], env=cluster, check=False
        )
        time.sleep(1)
    if not any(f"JobState={end}" in state for end in ENDS):
        return False
    time.sleep(2)  # a job that requeues itself is cancelled for a moment
    return any(f"JobState={end}" in state_of(job, cluster) for end in ENDS)


def state_of(job: str, cluster: dict[str, str]) -> str:
    return said(["scontrol", "show", "job", job], cluster)


def test_bare_srun_is_one_run_of_several_ranks(
    cluster: dict[str, str], recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    recipe_values["megatron"] = {"pipeline_model_parallel_size": 2}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_values))
    said(["srun", "-n", "2", *DAVINCI, "train", str(tmp_path / "recipe.yaml")], {**cluster, "OMP_NUM_THREADS": "1"})
    assert len(reported(tmp_path / "run")) == 1 and (tmp_path / "run" / "latest").is_file()


def test_the_data_pipelines_tasks_run_there(cluster: dict[str, str], qwen_json: Path, tmp_path: Path) -> None:
    """Two tasks and the merge that waits for them; the corpus is the one that a single process makes."""
    lines = [f'{{"text": "document number {number} of a few"}}\n' for number in range(40)]
    inputs = []
    for number in range(4):
        inputs.append(str(tmp_path / f"{number}.jsonl"))
        Path(inputs[-1]).write_text("".join(lines[number::4]))
    common = [*DAVINCI, "data", "shards", *inputs, "--tokenizer", str(qwen_json), "--append-eod", "--tasks", "2"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where datatrove's own command lies
    options = ["partition=all", "time=00:05:00", "mem_per_cpu_gb=1", f"env_command=export PATH={path}"]
    more = [argument for option in options for argument in ("--option", option)]
    there, here = tmp_path / "there", tmp_path / "here"
    said([*common, "--out", str(there), "--workers", "2", "--executor", "slurm", *more], {**cluster, "PATH": path})
    wait(there.with_suffix(".idx").is_file, tmp_path / "log")
    said([*common, "--out", str(here)], dict(os.environ))
    assert there.with_suffix(".bin").read_bytes() == here.with_suffix(".bin").read_bytes()
    assert len(Corpus(there)) == 40
