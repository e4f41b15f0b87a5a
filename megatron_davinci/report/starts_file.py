"""RUN/starts.jsonl: a line for each time that a run was started. Torch-free."""

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, NonNegativeInt, PositiveInt

from megatron_davinci import __version__
from megatron_davinci.config import Recipe
from megatron_davinci.report.metrics_file import JsonLines, read_lines

_PACKAGES = ("megatron-core", "torch", "transformer-engine", "apex", "transformers", "numpy")


class StartedStage(BaseModel):
    """A stage of a run: `first_step` from 0, and the number of `steps`."""

    name: str
    objective: str
    first_step: NonNegativeInt
    steps: NonNegativeInt


class Start(BaseModel):
    """One start of a run, at `time` (UTC), after `step` steps; `recipe` as it was resolved."""

    time: str
    step: NonNegativeInt
    command: str
    ranks: PositiveInt
    device: str
    versions: dict[str, str]
    num_steps: NonNegativeInt
    stages: list[StartedStage]
    recipe: dict[str, Any]


def append_start(run: Path, recipe: Recipe, step: int, stages: Sequence[StartedStage], ranks: int, device: str) -> None:
    """Write down one start of a run, after `step` steps."""
    start = Start(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        step=step,
        command=_command(),
        ranks=ranks,
        device=device,
        versions=_versions(),
        num_steps=sum(stage.steps for stage in stages),
        stages=list(stages),
        recipe=recipe.model_dump(mode="json"),
    )
    lines = JsonLines(_file(run), sys.maxsize)
    lines.write(start.model_dump())
    lines.close()


def read_starts(run: Path) -> list[Start]:
    """The starts of a run so far; none where it was started before they were written down. Raises InputError."""
    return read_lines(_file(run), Start)


def _file(run: Path) -> Path:
    return run / "starts.jsonl"


def _command() -> str:
    """What was typed, as far as a process knows it; a launcher's own options are its own."""
    launched = ["torchrun", "...", "-m", "megatron_davinci"] if "TORCHELASTIC_RUN_ID" in os.environ else ["davinci"]
    return shlex.join([*launched, *sys.argv[1:]])


def _versions() -> dict[str, str]:
    found = {"megatron-davinci": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
