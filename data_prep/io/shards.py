"""A step from a directory of shards to another one: each shard is done once, whoever starts it how often.

OUT.part holds what is finished: KIND/NAME.jsonl.zst of every shard, and notes/NAME.json, which appears last and says
that the shard is whole. When all are there, OUT appears with summary.json.
"""

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from data_prep.io.errors import InputError
from data_prep.io.files import PART, part_of, publish, read_json, refuse_existing, take_lock, write_json
from data_prep.io.threads import run_in_threads

_MOST_FAILED = 3  # shards: it is not the shards' fault

ShardNote = dict[str, Any]

_KINDS = ("records", "samples", "kept", "tasks", "trajectories")  # of what steps make


ShardWork = Callable[[Path, Path], ShardNote]


class ShardedJob(Protocol):
    """What can be done in shards: it travels to other processes, so it holds neither open files nor credentials."""

    def step(self, out: Path) -> "ShardedStep":
        """The work towards a directory. Raises InputError on bad input."""

    def summarize(self, notes: list[ShardNote]) -> ShardNote:
        """The summary of all shards."""


def run_in_process(job: ShardedJob, out: Path, on_shard: Callable[[int], None] = lambda count: None) -> ShardNote:
    """Do all of a job in this process; returns its summary."""
    step = job.step(out)
    step.begin()
    step.run(on_shard=on_shard)
    return step.finish(job.summarize)


class ShardedStep:
    """`job` is what the output depends on; a directory that another job began is refused.

    `shards` are the inputs. `open_work(rank, tasks)` gives, as a context, the function that writes the outputs of one
    shard below a folder and returns its note. `complete(folder, notes)` adds what belongs to the whole, and
    gives what is added to the summary. `concurrency`: shards at a time in one process, for work that waits for others.
    """

    def __init__(
        self,
        out: Path,
        job: dict[str, Any],
        shards: list[Path],
        open_work: Callable[[int, int], AbstractContextManager[ShardWork]],
        complete: Callable[[Path, list[ShardNote]], ShardNote] = lambda folder, notes: {},
        concurrency: int = 1,
    ) -> None:
        self.out = out.absolute()
        self.shards = shards
        self._open_work, self._complete = open_work, complete
        self._concurrency = concurrency
        self._part = part_of(self.out)
        self._job = {**job, "shards": [path.name for path in shards]}

    def begin(self) -> None:
        """Make, or find, the directory of what is unfinished. Raises InputError where it is another job's."""
        if self.out.exists():
            self._tidy()
        refuse_existing(self.out)
        note = self._part / "job.json"
        if note.exists() and read_json(note) != self._job:
            raise InputError(f"{self._part} was begun with other inputs or options: remove it, or name another")
        self._part.mkdir(parents=True, exist_ok=True)
        write_json(note, self._job)

    def run(self, rank: int = 0, tasks: int = 1, on_shard: Callable[[int], None] = lambda count: None) -> None:
        """Do every `tasks`-th shard from number `rank` on, but for those that are done."""
        if self.out.exists():
            return  # another one has finished it all
        with self._open_work(rank, tasks) as work:
            failed: list[InputError] = []

            def do(shard: Path) -> None:
                try:
                    if not self._note(shard).exists():
                        self._do(shard, work)
                except InputError as error:  # one that cannot be done does not keep the others from it
                    failed.append(error)
                    if len(failed) >= _MOST_FAILED:
                        raise
                on_shard(1)

            if self._concurrency == 1:
                for shard in self.shards[rank::tasks]:
                    do(shard)
            else:
                run_in_threads(do, self.shards[rank::tasks], self._concurrency)
            if failed:
                raise failed[0]

    def _do(self, shard: Path, work: ShardWork) -> None:
        notes = self._part / "notes"
        notes.mkdir(parents=True, exist_ok=True)
        lock_file = notes / f"{shard.name}.lock{PART}"
        lock = take_lock(lock_file)
        try:
            if not self._note(shard).exists():
                write_json(self._note(shard), work(shard, self._part))
        finally:
            lock_file.unlink(missing_ok=True)
            os.close(lock)

    def finish(self, summarize: Callable[[list[ShardNote]], ShardNote]) -> ShardNote:
        """Give the whole its name, with a summary made of all notes; nothing is done where that has happened."""
        if self.out.exists():
            found: ShardNote = read_json(self.out / "summary.json")
            return found
        missing = [shard.name for shard in self.shards if not self._note(shard).exists()]
        if missing:
            raise InputError(f"{self.out} is not finished ({len(missing)} shards are missing): start the command again")
        notes = [read_json(self._note(shard)) for shard in self.shards]
        summary = {**summarize(notes), **self._complete(self._part, notes)}
        write_json(self._part / "summary.json", summary)
        publish(self._part, self.out)
        self._tidy()
        return summary

    def _tidy(self) -> None:
        """Remove what a finished output does not need; a killed command may have left it."""
        note = self.out / "job.json"
        if note.is_file() and (self.out / "summary.json").is_file() and read_json(note) == self._job:
            shutil.rmtree(self.out / "notes", ignore_errors=True)
            (self.out / "job.json").unlink(missing_ok=True)

    def _note(self, shard: Path) -> Path:
        return self._part / "notes" / f"{shard.name}.json"


def shards_in(directory: Path, kind: str, made_by: str) -> list[Path]:
    """The shards KIND/*.jsonl.zst of a directory, in order. Raises InputError where there are none."""
    folder = directory / kind
    if directory.name == kind and not folder.is_dir():
        folder = directory  # its own part was named
    found = sorted(folder.glob("*.jsonl.zst"))
    if not found:
        if not directory.exists():
            raise InputError(f"{directory} does not exist: name what {made_by} made")
        others = [name for name in _KINDS if name != kind and (directory / name).is_dir()]
        held = f" but {others[0]}" if others else ""
        raise InputError(f"{directory} holds no {kind}/*.jsonl.zst{held}: make them with {made_by}")
    return found
