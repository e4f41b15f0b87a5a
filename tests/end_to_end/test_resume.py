"""Law: a run that was killed and started again ends with the weights of one that was not, bit for bit."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from conftest import write_model
from safetensors.torch import load_file

from megatron_davinci.checkpoint.convert import export_to_hf
from megatron_davinci.train.metrics import read_metrics

LAYOUTS = {
    "alone": (1, {}),
    "TP2+SP": (2, {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
    "PP2": (2, {"pipeline_model_parallel_size": 2}),
    "DP2": (2, {}),
}


def start(recipe: Path, ranks: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "megatron_davinci.train", str(recipe)]
    if ranks > 1:
        command[1:1] = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return subprocess.Popen(command, stderr=subprocess.PIPE)


def kill_tree(process: "subprocess.Popen[bytes]") -> None:
    """SIGKILL for torchrun and for its workers, which would outlive it."""
    launcher = psutil.Process(process.pid)
    for victim in [*launcher.children(recursive=True), launcher]:
        victim.kill()


def finish(process: "subprocess.Popen[bytes]") -> str:
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors.decode()
    return errors.decode()


def write_recipe(values: dict[str, Any], folder: Path, name: str, megatron: dict[str, Any]) -> Path:
    values = {
        **values,
        "megatron": megatron,
        "batch": {"global_size": 4},
        "checkpoint": {"dir": str(folder / name), "every_steps": 3, "keep": 2},
    }
    values["data"]["stages"][0]["epochs"] = 3
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(
    recipe_values: dict[str, Any], tmp_path: Path, layout: str
) -> None:
    ranks, megatron = LAYOUTS[layout]
    finish(start(write_recipe(recipe_values, tmp_path, "whole", megatron), ranks))

    recipe = write_recipe(recipe_values, tmp_path, "killed", megatron)
    process = start(recipe, ranks)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "latest").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    kill_tree(process)
    process.communicate()
    saved = int((tmp_path / "killed" / "latest").read_text().removeprefix("step_"))
    assert saved < 14
    assert f"after step {saved}" in finish(start(recipe, ranks))

    whole, killed = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "killed"))
    assert [line["step"] for line in killed] == list(range(1, 15))
    for key in ("loss", "grad_norm", "lr", "tokens"):
        assert [line[key] for line in killed] == [line[key] for line in whole]
    exported = []
    for name in ("whole", "killed"):
        export_to_hf(tmp_path / name, tmp_path / f"{name}-hf", tokenizer=None)
        exported.append(load_file(tmp_path / f"{name}-hf" / "model.safetensors"))
    assert all(torch.equal(tensor, exported[1][name]) for name, tensor in exported[0].items())
    assert len(list((tmp_path / "killed").glob("step_*"))) == 2  # keep


def test_a_finished_run_does_nothing_and_refuses_another_recipe(recipe_values: dict[str, Any], tmp_path: Path) -> None:
    recipe = write_recipe(recipe_values, tmp_path, "run", {})
    finish(start(recipe, 1))
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.distcp")}
    assert "after step 14" in finish(start(recipe, 1))
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.distcp")} == before
    write_model(tmp_path / "other", hidden_size=32)
    for change, message in (
        ("seed=5", "trained with other data, batch size or seed"),
        (f"model={tmp_path / 'other'}", "trained with another model"),
    ):
        command = [sys.executable, "-m", "megatron_davinci.train", str(recipe), change]
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
        assert refused.returncode == 2 and message in refused.stderr
