"""Property: a run that stands still ends, and says for whom it waited."""

import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from conftest import EFFORT
from training import start

from megatron_davinci.report.metrics_file import read_metrics

LIMIT = 8


@pytest.mark.parametrize("stopped", [0, 1] if EFFORT > 1 else [0])
def test_a_rank_that_is_stopped_is_named(
    recipe_values: dict[str, Any], tmp_path: Path, stopped: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once where rank 0 keeps the store, as under `davinci launch` and srun, and is stopped with it; once torchrun."""
    if stopped == 0:
        monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    recipe_values["data"]["stages"][0]["epochs"] = 5000
    recipe_values["checkpoint"]["save_interval"] = 10000
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**recipe_values, "fault_tolerance": {"watchdog_timeout": LIMIT}}))
    launcher = start(recipe, 2)
    while len(read_metrics(tmp_path / "run" / "metrics.jsonl")) < 3:
        assert launcher.poll() is None
        time.sleep(0.01)
    ranks = [p for p in psutil.Process(launcher.pid).children() if "megatron_davinci train" in " ".join(p.cmdline())]
    [victim] = [process for process in ranks if process.environ()["RANK"] == str(stopped)]
    time.sleep(LIMIT / 2)  # until they have heard of each other
    victim.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    assert launcher.stderr is not None
    sentence = next(line for line in map(bytes.decode, launcher.stderr) if line.startswith("error: ")).strip()
    if EFFORT == 1:
        victim.kill()  # for which torchrun waits 30 seconds
    launcher.communicate(timeout=120)
    assert launcher.returncode != 0 and time.monotonic() - began < 4 * LIMIT + 35
    assert sentence.startswith(f"error: rank {stopped} (") and f"process {victim.pid})" in sentence
    assert "has been silent for" in sentence and "stacks" in sentence
    stacks = (tmp_path / "run" / "stacks" / f"rank_{1 - stopped:05d}.txt").read_text()
    assert "megatron_davinci/train/loop.py" in stacks and sentence.removeprefix("error: ").split(";")[0] in stacks
