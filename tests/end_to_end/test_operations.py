"""Tests of a run's life: signals, numbers that are not finite, damaged checkpoints, writing while training goes on."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from conftest import EFFORT, of_acceptance
from forked import run_davinci
from safetensors.torch import load_file, save_file
from test_convert import write_weights
from training import (
    finish,
    kill_after,
    progress,
    reported,
    same_weights,
    start,
    train,
    undescribed,
    uninterrupted,
    whole,
    write_recipe,
)

from data_prep.corpus import Corpus
from megatron_davinci.report.metrics_file import read_metrics
from megatron_davinci.weights.compare import differences
from megatron_davinci.weights.to_megatron import import_from_hf

STEPS = 14  # 18 documents, batches of 4, three epochs
Write = Callable[..., Path]
__all__ = ["uninterrupted", "whole"]
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one": (1, {}),
    "DP2": (2, {"use_distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True}),
    "TP2+SP": (2, {"tensor_model_parallel_size": 2, "sequence_parallel": True, "bf16": True}),
    "PP2": (2, {"pipeline_model_parallel_size": 2}),
}


@pytest.fixture
def write(recipe_values: dict[str, Any], tmp_path: Path) -> Write:
    """Writes the recipe of a run NAME, three epochs, with changes to its checkpoint section and others."""

    def write(name: str, checkpoint: dict[str, Any] | None = None, **changes: Any) -> Path:
        recipe_values["data"]["stages"][0]["epochs"] = 3
        known = {"dir": str(tmp_path / name), "save_interval": 3, "save_total_limit": 2, **(checkpoint or {})}
        return write_recipe(recipe_values, tmp_path, name, checkpoint=known, **changes)

    return write


def equal(one: Path, other: Path) -> None:
    assert reported(one) == reported(other) and len(reported(one)) == STEPS
    assert progress(one) == progress(other)
    assert same_weights(one, other)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1] if EFFORT > 1 else [signal.SIGUSR1])
def test_a_signal_saves_and_ends(write: Write, whole: Path, tmp_path: Path, number: signal.Signals) -> None:
    stopped = write("stopped", {"save_interval": 100})
    process = start(stopped, 1)
    while len(read_metrics(tmp_path / "stopped" / "metrics.jsonl")) < 4:
        time.sleep(0.002)
    process.send_signal(number)
    said = finish(process)
    step = progress(tmp_path / "stopped")["step"]
    assert f"After step {step} of {STEPS}" in (tmp_path / "stopped" / "report.html").read_text()
    assert 4 <= step < STEPS and f"stopped by {number.name}: step {step} is done and saved" in said
    train(stopped, 1)
    equal(tmp_path / "stopped", whole)


def test_a_signal_before_the_first_step_waits_for_it(write: Write, tmp_path: Path) -> None:
    process = start(write("run", {"save_interval": 100}), 1)
    while not blocked_signals(process.pid) >> (signal.SIGUSR1 - 1) & 1:
        time.sleep(0.002)
    process.send_signal(signal.SIGUSR1)
    assert "stopped by SIGUSR1: step 1 is done and saved" in finish(process)
    assert progress(tmp_path / "run")["step"] == 1


def blocked_signals(process: int) -> int:
    """A bit for each."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("SigBlk:")[2].split()[0], 16)


@of_acceptance
def test_a_launchers_signal_reaches_ranks_that_have_saved_before(write: Write, tmp_path: Path) -> None:
    """torchrun signals whole process groups, and so the processes that help a rank to save."""
    train(write("whole", megatron=LAYOUTS["PP2"][1]), 2)
    stopped = write("stopped", {"save_interval": 1, "async_save": True}, megatron=LAYOUTS["PP2"][1])
    process = start(stopped, 2)
    while len(read_metrics(tmp_path / "stopped" / "metrics.jsonl")) < 4:
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    step = progress(tmp_path / "stopped")["step"]
    assert f"After step {step} of {STEPS}" in (tmp_path / "stopped" / "report.html").read_text()
    assert step == len(read_metrics(tmp_path / "stopped" / "metrics.jsonl")) < STEPS
    assert f"step {step} is done and saved".encode() in said and b"could not be written" not in said
    train(stopped, 2)
    equal(tmp_path / "stopped", tmp_path / "whole")


@of_acceptance
@pytest.mark.parametrize("layout", LAYOUTS if EFFORT > 1 else ["DP2"])
def test_written_while_training_goes_on(write: Write, tmp_path: Path, layout: str) -> None:
    ranks, megatron = LAYOUTS[layout]
    train(write("whole", megatron=megatron), ranks)
    recipe, run = write("run", {"async_save": True, "save_total_limit": 9}, megatron=megatron), tmp_path / "run"
    for step in (4,) if EFFORT == 1 else range(3, STEPS - 1, 2):
        kill_after(start(recipe, ranks), run, step)
        assert (run / "latest").is_file() == any(run.glob("step_*[0-9]"))
    train(recipe, ranks)
    equal(run, tmp_path / "whole")
    assert [path.name for path in sorted(run.glob("step_*"))] == [f"step_{step:07d}" for step in (3, 6, 9, 12, 14)]


DAMAGES = ["altered", "pickle", "truncated", "missing", "progress", "manifest"]  # unit tests have each


@pytest.mark.parametrize("damage", DAMAGES if EFFORT > 1 else DAMAGES[:2])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    write: Write, whole: Path, tmp_path: Path, damage: str
) -> None:
    recipe, run = write("run"), tmp_path / "run"
    kill_after(start(recipe, 1), run, 8)
    newest = run / "step_0000006"
    weights = sorted(newest.glob("*.distcp"))[0]
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-9])
    elif damage == "altered":
        content = bytearray(weights.read_bytes())
        content[len(content) // 2] ^= 1
        weights.write_bytes(content)
    elif damage == "missing":
        weights.unlink()
    elif damage == "progress":
        (newest / "progress.json").write_text("{}")
    elif damage == "manifest":
        (newest / "manifest.json").write_text("[")
    else:
        malicious(newest, tmp_path / "told")
    said = train(recipe, 1)
    assert newest.name in said and ("going on from step_0000003" in said or "altered: going back" in said)
    assert "resuming" in said and "after step 3" in said and not (tmp_path / "told").exists()
    equal(run, whole)


def malicious(checkpoint: Path, told: Path) -> None:
    """.metadata that would run code, known to the manifest."""
    from megatron_davinci.weights.checkpoint_files import file_entry

    (checkpoint / ".metadata").write_bytes(b"cpathlib\nPath\n(V" + str(told).encode() + b"\ntR.")
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"][".metadata"] = file_entry(checkpoint / ".metadata")
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def test_no_whole_checkpoint_is_one_sentence(write: Write, tmp_path: Path) -> None:
    recipe, run = write("run", {"save_total_limit": 1}), tmp_path / "run"
    train(recipe, 1)
    next(run.glob("step_*/progress.json")).unlink()
    refused = run_davinci("train", recipe)
    assert refused.returncode == 2 and "has no checkpoint that is whole" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_checkpoints_that_stay(write: Write, tmp_path: Path) -> None:
    train(write("run", {"save_interval": 2, "save_total_limit": 1, "save_retain_interval": 4}), 1)
    left = sorted(path.name for path in (tmp_path / "run").glob("step_*"))
    assert left == [f"step_{step:07d}" for step in (4, 8, 12, 14)]


def with_poison(folder: Path, corpus: Path) -> Path:
    """Weights whose embedding of a token that only some batches see is infinite."""
    source = write_weights(folder / "poisoned", num_hidden_layers=4)
    tensors = load_file(source / "model.safetensors")
    documents = Corpus(corpus)
    rare = next(token for token in range(1, 256) if sum(token in documents[n] for n in range(len(documents))) == 1)
    tensors["model.embed_tokens.weight"][rare] = torch.inf
    save_file(tensors, source / "model.safetensors")
    return source


def test_steps_that_are_not_finite_are_skipped_and_counted(write: Write, tmp_path: Path) -> None:
    poisoned = with_poison(tmp_path, tmp_path / "corpus")
    changes = {"model": str(poisoned), "init_from": str(poisoned)}
    train(write("run", fault_tolerance={"max_skipped_steps": 2}, **changes), 1)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    skipped = [line for line in lines if line.get("skipped")]
    assert len(lines) == STEPS and len(skipped) == 3 and all(line["loss"] is None for line in skipped)
    assert all(line["loss"] is not None for line in lines if not line.get("skipped"))
    killed = write("killed", fault_tolerance={"max_skipped_steps": 2}, **changes)
    kill_after(start(killed, 1), tmp_path / "killed", 7)
    train(killed, 1)
    assert reported(tmp_path / "killed") == reported(tmp_path / "run")
    assert progress(tmp_path / "killed") == progress(tmp_path / "run")
    assert differences(tmp_path / "killed", tmp_path / "run") == []  # bit for bit, the poison too: nothing converts it
    refused = run_davinci("train", write("strict", **changes))
    assert refused.returncode == 1 and "1 step(s) in a row: nothing of this one is saved" in refused.stderr
    reached = len(read_metrics(tmp_path / "strict" / "metrics.jsonl"))
    assert f"After step {reached} of {STEPS}" in (tmp_path / "strict" / "report.html").read_text()


@pytest.mark.parametrize("layout", ["one", "DP2"] if EFFORT > 1 else ["one"])
def test_a_run_that_has_made_no_step_yet_is_saved_and_resumed(write: Write, tmp_path: Path, layout: str) -> None:
    """All steps are skipped: Adam has no moments, and Megatron would find none to save."""
    source = write_weights(tmp_path / "broken", num_hidden_layers=4)
    tensors = load_file(source / "model.safetensors")
    save_file({**tensors, "model.norm.weight": tensors["model.norm.weight"] * torch.nan}, source / "model.safetensors")
    ranks, megatron = LAYOUTS[layout]
    changes = {"model": str(source), "init_from": str(source), "megatron": megatron}
    run = write("run", fault_tolerance={"max_skipped_steps": 100}, **changes)
    kill_after(start(run, ranks), tmp_path / "run", 7)
    assert "resuming" in train(run, ranks)
    assert progress(tmp_path / "run")["step"] == progress(tmp_path / "run")["skipped"] == STEPS


def test_weights_that_one_rank_alone_finds_damaged(write: Write, tmp_path: Path) -> None:
    """Those of the last layer, which the second pipeline stage reads: its sentence is the main rank's too."""
    source = write_weights(tmp_path / "hf", num_hidden_layers=4)
    import_from_hf(source, tmp_path / "weights")
    (tmp_path / "weights" / "manifest.json").unlink()
    path = tmp_path / "weights" / "__0_0.distcp"
    data = bytearray(path.read_bytes())
    last = load_file(source / "model.safetensors")["model.layers.3.mlp.down_proj.weight"]
    data[data.find(last.numpy().tobytes()[:64])] ^= 1
    path.write_bytes(data)
    changes = {"model": str(source), "init_from": str(tmp_path / "weights"), "megatron": LAYOUTS["PP2"][1]}
    refused = start(write("run", **changes), 2)
    _, error = refused.communicate()
    assert refused.returncode and b"error: " in error and b"__0_0.distcp is altered between bytes" in error


def test_a_killed_run_leaves_no_process(write: Write, tmp_path: Path) -> None:
    process = start(write("run"), 1)
    while not (tmp_path / "run" / "latest").is_file():
        time.sleep(0.01)
    others = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    assert others and not psutil.wait_procs(others, timeout=10)[1]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A disk of so many bytes; asked again, it grows."""
    where = tmp_path / "disk"
    where.mkdir()

    def make(size: int) -> Path:
        how = "remount" if where.is_mount() else "rw"
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"{how},size={size}", "none", str(where)], capture_output=True, check=False
        )
        if made.returncode:
            pytest.skip("needs the right to mount a small disk")
        return where

    yield make
    if where.is_mount():
        subprocess.run(["umount", str(where)], check=True)


@pytest.mark.parametrize("async_save", [False, True] if EFFORT > 1 else [True])
def test_a_full_disk_is_one_sentence_and_the_last_good_checkpoint_stays(
    write: Write, whole: Path, tmp_path: Path, disk: Callable[[int], Path], async_save: bool
) -> None:
    [one, *_] = whole.glob("step_*")
    size = sum(path.stat().st_size for path in one.rglob("*") if path.is_file())
    recipe = write("run", {"dir": str(disk(size * 8 // 5) / "run"), "async_save": async_save})
    failed = run_davinci("train", recipe)
    assert failed.returncode == 1 and "Traceback" not in failed.stderr
    assert "the disk is full: the last good checkpoint is step_0000003; mend that" in failed.stderr
    disk(size * 20)
    assert "after step 3" in train(recipe, 1)
    equal(tmp_path / "disk" / "run", whole)


def test_a_directory_that_cannot_be_made_is_refused_before_anything_starts(write: Write, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = run_davinci("train", write("run", {"dir": str(tmp_path / "file" / "run")}))
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert f"{tmp_path / 'file'} cannot be written to: name another directory" in refused.stderr


def test_weights_and_biases_gets_what_tensorboard_gets(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept on this machine: WANDB_MODE=offline writes the file that `wandb sync` would send."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(write("run", wandb={"project": "trial"}), 1)
    [record] = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    written = record.read_bytes()
    assert b"trial" in written and written.count(b"optimizer/grad_norm") >= STEPS and b"optimizer/lr" in written
    assert undescribed(tmp_path / "run") == set()


def test_a_runs_directory_has_one_writer(write: Write, whole: Path, tmp_path: Path) -> None:
    recipe, run = write("run"), tmp_path / "run"
    first = start(recipe, 1)
    while len(read_metrics(run / "metrics.jsonl")) < 1:
        time.sleep(0.002)
    first.send_signal(signal.SIGSTOP)  # so that it is still there, however long the second one takes
    try:
        seconds = [start(recipe, ranks) for ranks in (1, 2)]
        said = [process.communicate(timeout=200)[1].decode() for process in seconds]
    finally:
        first.send_signal(signal.SIGCONT)
    assert [process.returncode for process in seconds] == [2, 1]  # the second by torchrun, whose own status it is
    for sentence in said:
        assert (
            f"another run is writing to {run} (process {first.pid} on " in sentence and "wait for it to end" in sentence
        )
    assert said[0].count("\n") == 1
    finish(first)
    equal(run, whole)
    assert not (run / "run.lock").exists()


def test_without_the_lock_two_runs_spoil_each_other(write: Write, tmp_path: Path) -> None:
    """What the lock is for: with it taken out, the second cuts off the first one's metrics."""
    recipe, run = write("run", {"save_interval": 100}), tmp_path / "run"
    first = start(recipe, 1)
    while len(read_metrics(run / "metrics.jsonl")) < 8:
        time.sleep(0.002)
    first.send_signal(signal.SIGSTOP)
    unlocked = "import contextlib; from megatron_davinci.train import loop; loop.one_writer = contextlib.nullcontext; "
    command = [
        sys.executable,
        "-c",
        f"{unlocked} from megatron_davinci.cli import main; main()",
        "train",
        str(recipe),
    ]
    second = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        while len(read_metrics(run / "metrics.jsonl")) >= 8:
            assert second.poll() is None
            time.sleep(0.002)
    finally:
        first.kill()
        second.kill()
        second.wait()
        first.communicate()
