"""Whether tasks are what they say, again and elsewhere: gold resolves and an empty patch does not, in other conditions.

The clock a year ahead and behind, a machine under load, no network at all: a task that holds by chance does not stand.
"""

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from data_prep.environments.collection import TaskCollection
from data_prep.environments.environment import Environment
from data_prep.environments.judge import Judge, taken_of
from data_prep.environments.sandbox.base import Network
from data_prep.environments.sandbox.registry import open_sandbox
from data_prep.environments.scratch import ScratchNames
from data_prep.environments.task import Task
from data_prep.io.errors import InputError
from data_prep.io.files import new_file

_FAKETIME = "faketime/libfaketimeMT.so.1"
_BURN = ["/bin/sh", "-c", "while :; do :; done"]
_LOAD = 2  # processes for each core


@dataclass(frozen=True)
class Condition:
    """What is other than usual."""

    network: Network = "black hole"
    days: int = 0
    under_load: bool = False


CONDITIONS: Mapping[str, Condition] = {
    "as built": Condition(),
    "a year ahead": Condition(days=365),
    "a year behind": Condition(days=-365),
    "under load": Condition(under_load=True),
    "without network": Condition(network="none"),
}


@dataclass
class Findings:
    """What does not hold: task, condition, what was seen instead."""

    checked: int = 0
    faults: list[dict[str, str]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        invalid = sorted({fault["instance_id"] for fault in self.faults})
        return {"checked": self.checked, "invalid_ids": invalid, "faults": self.faults}


def verify_tasks(
    envs: Path,
    report: Path,
    names: Sequence[str] = (),
    conditions: Sequence[str] = (),
    sandbox: str = "bubblewrap",
    without: Sequence[str] = (),
    on_task: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Verify tasks (all, or those named) in conditions (all, or those named); writes a report and returns it.

    Raises InputError for what is unknown, or what a condition needs and this machine lacks.
    """
    collection = TaskCollection(envs)
    chosen = {name: _condition(name) for name in conditions} or dict(CONDITIONS)
    findings = Findings()
    with new_file(report) as part:
        backend = open_sandbox(sandbox, report.parent.absolute(), "black hole", tuple(without))
        scratch = ScratchNames(report.parent)
        try:
            for task in map(collection.task, names or collection.ids()):
                place = collection.environment(task)
                for name, condition in chosen.items():
                    judge = Judge(backend, scratch, condition.network, environment=_clock(condition.days))
                    with _load(condition.under_load):
                        _check(task, place, judge, name, findings)
                findings.checked += 1
                on_task(1)
        finally:
            scratch.close()
        found = {"conditions": list(chosen), **findings.as_json()}
        part.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    return found


def _condition(name: str) -> Condition:
    if name not in CONDITIONS:
        raise InputError(f"--condition is {name!r}; it must be one of {', '.join(CONDITIONS)}")
    return CONDITIONS[name]


def _check(task: Task, place: Environment, judge: Judge, condition: str, findings: Findings) -> None:
    for patch, wanted in ((task.patch_bytes, "resolved"), (b"", "unresolved")):
        verdict = judge.judge_taken(task, place, replace(taken_of(patch, task, place.tree), suspect=""))
        if verdict.status != wanted:
            what = "the gold patch" if patch else "an empty patch"
            findings.faults.append(
                {
                    "instance_id": task.instance_id,
                    "condition": condition,
                    "fault": f"{what} is {verdict.status}: {verdict.reason}",
                }
            )


def _clock(days: int) -> dict[str, str]:
    """Variables that shift the clock of what runs; of time that only passes nothing changes."""
    if not days:
        return {}
    found = sorted(Path("/usr/lib").glob(f"*/{_FAKETIME}")) + sorted(Path("/usr/lib").glob(_FAKETIME))
    if not found:
        raise InputError("a shifted clock needs libfaketime, which is not here: apt-get install faketime")
    return {"LD_PRELOAD": str(found[0]), "FAKETIME": f"{days:+d}d", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


@contextmanager
def _load(wanted: bool) -> Iterator[None]:
    """All cores busy, while the block runs."""
    count = _LOAD * (os.cpu_count() or 1) if wanted else 0
    burning = [subprocess.Popen(_BURN) for _ in range(count)]
    try:
        yield
    finally:
        for process in burning:
            process.kill()
            process.wait()
