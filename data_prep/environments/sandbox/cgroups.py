"""Limits of memory and processes over a whole sandbox: control groups, version 2 or 1."""

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from data_prep.environments.sandbox.base import Limits

_ROOT = Path("/sys/fs/cgroup")
_PREFIX = "davinci-"
_numbers = itertools.count()
_CLOSING_SECONDS = 5.0

_Resource = Literal["memory", "pids"]


class Cgroup:
    """A group of its own for one command; `missing` are the limits that this machine does not give."""

    def __init__(self, limits: Limits) -> None:
        name = f"{_PREFIX}{os.getpid()}-{next(_numbers)}"
        self._paths: dict[Path, None] = {}
        self.missing: list[_Resource] = []
        wanted: dict[_Resource, int] = {"memory": limits.memory_bytes, "pids": limits.processes}
        for kind, limit in wanted.items():
            if not any(self._limited(parent / name, kind, limit) for parent in _parents(kind)):
                self.missing.append(kind)

    def _limited(self, path: Path, kind: _Resource, limit: int) -> bool:
        made = path in self._paths
        try:
            path.mkdir(exist_ok=made)
            for file, value in _settings(path, kind, limit).items():
                (path / file).write_text(str(value))
        except OSError:
            if not made:
                with suppress(OSError):
                    path.rmdir()
            return False
        self._paths[path] = None
        return True

    @property
    def entrances(self) -> list[Path]:
        """The files into which a process writes its number to be in the group."""
        return [path / "cgroup.procs" for path in self._paths]

    @property
    def out_of_memory(self) -> bool:
        """Whether the kernel ended a process of the group for want of memory."""
        counts = (_count(path / file, "oom_kill") for path in self._paths for file in _MEMORY_EVENTS)
        return any(counts)

    def close(self) -> None:
        """Remove the group, whose processes have ended."""
        for path in self._paths:
            _remove(path)


_MEMORY_EVENTS = ("memory.events", "memory.oom_control")  # of version 2, of version 1


def _settings(path: Path, kind: _Resource, limit: int) -> dict[str, int]:
    if kind == "pids":
        return {"pids.max": limit}
    if (path / "memory.max").exists():
        return (
            {"memory.max": limit, "memory.swap.max": 0}
            if (path / "memory.swap.max").exists()
            else {"memory.max": limit}
        )
    return {"memory.limit_in_bytes": limit}


def _parents(kind: _Resource) -> Iterator[Path]:
    """Where a group of this kind could be made: innermost first."""
    if not (_ROOT / "cgroup.controllers").exists():  # version 1: a hierarchy of each kind
        yield _ROOT / kind
        return
    own = next((line[3:] for line in _own_groups() if line.startswith("0::")), "/")
    inner = _ROOT / own.strip("/")
    for parent in (inner, *inner.parents):
        with suppress(OSError):
            if kind in (parent / "cgroup.subtree_control").read_text().split():
                yield parent
        if parent == _ROOT:
            return


def _own_groups() -> list[str]:
    return Path("/proc/self/cgroup").read_text().splitlines()


def _count(file: Path, name: str) -> int:
    with suppress(OSError, ValueError):
        for line in file.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    return 0


def _remove(path: Path) -> None:
    end = time.monotonic() + _CLOSING_SECONDS
    while path.exists():
        try:
            path.rmdir()
        except OSError:
            for process in _processes(path):
                with suppress(ProcessLookupError):
                    os.kill(process, 9)
            if time.monotonic() > end:
                return  # the next sweep finds it
            time.sleep(0.01)


def _processes(path: Path) -> list[int]:
    with suppress(OSError):
        return [int(line) for line in (path / "cgroup.procs").read_text().split()]
    return []


def sweep() -> None:
    """Remove the groups, and end the processes in them, that killed commands of ours have left."""
    for parent in {*_parents("memory"), *_parents("pids")}:
        with suppress(OSError):
            for path in parent.glob(f"{_PREFIX}*"):
                owner = path.name.removeprefix(_PREFIX).partition("-")[0]
                if owner.isdigit() and not Path("/proc", owner).exists():
                    _remove(path)
