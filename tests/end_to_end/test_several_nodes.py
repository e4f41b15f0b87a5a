"""Property: a run over two nodes is the run of one, on Slurm and on torchrun, and so is one whose node has died.

The nodes are network namespaces of this machine: names, addresses and sockets are of two hosts, and a node can crash.
"""

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import of_acceptance
from hosts import Host, hosts, why_no_hosts
from slurm_cluster import SeveralNodes, slurm_of, why_none
from training import finish, reported, same_weights, start

from megatron_davinci.report.metrics_file import read_metrics

SECONDS, STEPS = 400, 40
DAVINCI = [sys.executable, "-m", "megatron_davinci"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def network() -> Iterator[list[Host]]:
    """A controller, and two nodes."""
    if reason := why_no_hosts():
        pytest.skip(reason)
    with hosts("control", "node1", "node2") as found:
        yield found


@pytest.fixture(scope="module")
def cluster(network: list[Host]) -> Iterator[SeveralNodes]:
    if reason := why_none():
        pytest.skip(reason)
    with slurm_of(*network) as found:
        yield found


def wait(happened: Callable[[], Any], log: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not happened():
        assert time.monotonic() < deadline, log.read_text() if log.is_file() else "no log"
        time.sleep(0.1)


def write(values: dict[str, Any], folder: Path, name: str) -> Path:
    """A run of 40 steps over two ranks that share each layer, with a checkpoint every fifth."""
    values["data"]["stages"][0]["epochs"] = STEPS
    megatron = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
    checkpoint = {"dir": str(folder / name), "save_interval": 5, "save_total_limit": 2}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**values, "megatron": megatron, "checkpoint": checkpoint}))
    return path


def compare(folder: Path, recipe: Path, run: Path) -> None:
    """With the run of one machine that nothing has stopped."""
    finish(start(recipe, 2))
    assert reported(run) == reported(folder / "whole") and len(reported(run)) == STEPS
    assert same_weights(run, folder / "whole")


def submit(cluster: SeveralNodes, recipe: Path) -> str:
    """The number of the job that `davinci launch` has handed in for both nodes."""
    where = ["--nodes", "2", "--gpus-per-node", "1", "--cpu", "--slurm", "--time", "20", "--warning", "30"]
    cluster.environment.update(OMP_NUM_THREADS="1")
    told = cluster.said("env", "-C", str(recipe.parent), *DAVINCI, "launch", str(recipe), *where)
    match = re.match(r"submitted (\d+):", told)
    assert match, told
    return match[1]


@of_acceptance  # Slurm itself takes its time: minutes, where others use the cores
def test_a_node_that_dies_costs_the_steps_since_the_last_checkpoint(
    cluster: SeveralNodes, network: list[Host], recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    recipe, run, node = write(recipe_values, tmp_path, "run"), tmp_path / "run", network[2]
    job = submit(cluster, recipe)
    log = tmp_path / f"slurm-run-{job}.log"
    wait(lambda: len(read_metrics(run / "metrics.jsonl")) >= 8, log)
    node.crash()
    wait(lambda: "JobState=PENDING" in cluster.said("scontrol", "show", "job", job), log)
    cluster.start_node(node)
    wait(lambda: len(read_metrics(run / "metrics.jsonl")) >= STEPS, log)
    wait(lambda: "JobState=COMPLETED" in cluster.said("scontrol", "show", "job", job), log)
    assert "resuming" in log.read_text()
    assert int(re.findall(r"Restarts=(\d+)", cluster.said("scontrol", "show", "job", job))[0]) >= 1
    compare(tmp_path, write(recipe_values, tmp_path, "whole"), run)


@of_acceptance
def test_torchrun_over_two_hosts_meets_again_after_one_has_died(
    network: list[Host], recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    recipe, run, nodes = write(recipe_values, tmp_path, "run"), tmp_path / "run", network[1:]
    command = [*DAVINCI, "launch", str(recipe), "--nodes", "2", "--gpus-per-node", "1", "--cpu"]
    environment = {**ENVIRONMENT, "MASTER_ADDR": nodes[0].name}
    logs = [tmp_path / f"{node.name}.log" for node in nodes]
    pairs = list(zip(nodes, logs, strict=True))
    started = [node.start(*command, environment=environment, log=log) for node, log in pairs]
    wait(lambda: len(read_metrics(run / "metrics.jsonl")) >= 8, logs[0])
    nodes[1].crash()
    assert started[1].wait(60) == -signal.SIGKILL
    started[1] = nodes[1].start(*command, environment=environment, log=logs[1])
    assert [process.wait(SECONDS) for process in started] == [0, 0], [log.read_text()[-3000:] for log in logs]
    assert "resuming" in logs[0].read_text()
    compare(tmp_path, write(recipe_values, tmp_path, "whole"), run)
