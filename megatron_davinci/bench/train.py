"""Trials of a recipe, each layout in fresh processes. Torch-free."""

import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from data_prep import InputError
from data_prep.io.child import run_child
from data_prep.io.files import read_json
from megatron_davinci.bench.rank import MACHINE_FILE
from megatron_davinci.bench.report import summarize_trial
from megatron_davinci.config import load_recipe


def run_trials(
    recipe: Path, layouts: Sequence[Sequence[str]], ranks: int, steps: int, warmup: int
) -> list[dict[str, Any]]:
    """A report of each layout: its figures, or the sentence with which it was refused or failed."""
    if steps <= warmup:
        raise InputError(f"--steps is {steps}, --warmup {warmup}: nothing would be measured; take more steps")
    for overrides in layouts:
        load_recipe(recipe, list(overrides))  # a mistake is said before anything is measured
    trials = []
    for number, overrides in enumerate(layouts, 1):
        print(f"trial {number} of {len(layouts)}: {' '.join(overrides) or 'the recipe'}", file=sys.stderr, flush=True)
        trials.append(_run_trial(recipe, list(overrides), ranks, steps, warmup))
    return trials


def _run_trial(recipe: Path, overrides: list[str], ranks: int, steps: int, warmup: int) -> dict[str, Any]:
    told: dict[str, Any] = {"overrides": overrides, "ranks": ranks, "date": datetime.now(UTC).date().isoformat()}
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        launcher = [
            sys.executable,
            "-m",
            "megatron_davinci.launch.torchrun",
            "--standalone",
            f"--nproc-per-node={ranks}",
        ]
        trial = [
            "-m",
            "megatron_davinci.bench.rank",
            str(steps),
            str(recipe),
            *overrides,
            f"checkpoint.dir={run}",
            "wandb=null",
        ]
        told["command"] = shlex.join(["davinci", "bench", "train", str(recipe), *overrides])
        environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        done = run_child([*launcher, *trial], environment, keep_errors=True)
        if done.returncode:
            return {**told, "fault": _reason(done.stderr)}
        lines = [orjson.loads(line) for line in (run / "metrics.jsonl").read_bytes().splitlines()]
        machine = read_json(run / MACHINE_FILE)
    fp8 = bool(load_recipe(recipe, overrides).stage(0).megatron.fp8)
    try:
        return {**told, "machine": machine, "figures": summarize_trial(lines, warmup, machine, fp8)}
    except InputError as short:  # the recipe has fewer steps in this layout
        return {**told, "machine": machine, "fault": str(short)}


def _reason(said: str) -> str:
    """The sentence of a mistake, or the last line that an exception left."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    mistakes = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    faults = [line for line in lines if "Error: " in line]
    return next(iter([*mistakes, *faults[-1:], *lines[-1:]]), "it said nothing")
