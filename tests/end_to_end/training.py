"""Training runs as a user starts them, for tests that stop them."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
import psutil
import pytest
import torch
import yaml
from forked import run_davinci_on_ranks
from safetensors.torch import load_file

from megatron_davinci.report.metric_fields import find_field
from megatron_davinci.report.metrics_file import read_metrics
from megatron_davinci.weights.to_huggingface import export_to_hf

DAVINCI = [sys.executable, "-c", "from megatron_davinci.cli import main; main()"]
CLOCKS = ("second", "mfu", "memory", "slowest")


def start(recipe: Path, ranks: int, *overrides: str) -> "subprocess.Popen[bytes]":
    """`davinci train`, or torchrun where there is more than one rank."""
    command = [sys.executable, "-m", "megatron_davinci", "train", str(recipe), *overrides]
    if ranks > 1:
        command[1:1] = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return subprocess.Popen(command, stderr=subprocess.PIPE)


def train(recipe: Path, ranks: int, *overrides: str) -> str:
    """The same from start to end, which must succeed; gives what it said. Its ranks share their imports."""
    ended = run_davinci_on_ranks(ranks, "train", recipe, *overrides)
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


def finish(process: "subprocess.Popen[bytes]") -> str:
    """Wait for a run that must succeed; gives what it said."""
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    return errors.decode()


@pytest.fixture(scope="module")
def uninterrupted() -> list[Path]:
    """The run that `whole` has made."""
    return []


@pytest.fixture
def whole(write: Callable[..., Path], tmp_path: Path, uninterrupted: list[Path]) -> Path:
    """A run of one process that nothing stopped, by the module's `write`: the first test that asks for it starts it."""
    if not uninterrupted:
        train(write("whole"), 1)
        uninterrupted.append(tmp_path / "whole")
    return uninterrupted[0]


def kill_after(process: "subprocess.Popen[bytes]", run: Path, step: int) -> None:
    """Once a step was reported: somewhere in the next one, or in its saving."""
    kill_when(process, lambda: len(read_metrics(run / "metrics.jsonl")) >= step)


def kill_when(process: "subprocess.Popen[bytes]", happened: Callable[[], bool]) -> None:
    """SIGKILL for torchrun and its workers."""
    deadline = time.monotonic() + 200
    while not happened():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    launcher = psutil.Process(process.pid)
    for victim in [*launcher.children(recursive=True), launcher]:  # workers would outlive torchrun
        with suppress(psutil.NoSuchProcess):
            victim.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it had ended before"


def write_recipe(values: dict[str, Any], folder: Path, name: str, **changes: Any) -> Path:
    """A recipe file for a run in FOLDER/NAME, with three epochs and a checkpoint every third step."""
    checkpoint = {"dir": str(folder / name), "save_interval": 3, "save_total_limit": 2}
    values = {**values, "batch": {"global_batch_size": 4}, "checkpoint": checkpoint, **changes}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def reported(run: Path) -> list[dict[str, Any]]:
    """What a run's metrics say, without clocks."""
    lines = read_metrics(run / "metrics.jsonl")
    return [{key: value for key, value in line.items() if not any(clock in key for clock in CLOCKS)} for line in lines]


def undescribed(run: Path) -> set[str]:
    """Fields of a run's metrics that docs/metrics.md does not describe."""
    names = {name for line in read_metrics(run / "metrics.jsonl") for name in line} - {"step", "stage"}
    return {name for name in names if find_field(name).group == "objective"}


def progress(run: Path) -> dict[str, Any]:
    """progress.json of a run's latest checkpoint."""
    found: dict[str, Any] = orjson.loads((run / (run / "latest").read_text().strip() / "progress.json").read_bytes())
    return found


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The exported weights of a run's latest checkpoint."""
    with TemporaryDirectory() as folder:
        exported = Path(folder) / "hf"
        export_to_hf(run, exported)
        return load_file(exported / "model.safetensors")


def same_weights(one: Path, other: Path) -> bool:
    """Bit for bit."""
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())
