"""A thread beside each rank that tells when the run stands still, and for whom it waits, and ends it.

Each thread says through the process group's store that its process lives, and where its work is. The main rank's reads
them all, the second rank's that of the main one: a silent rank is stopped or gone; where nobody's work moves, the rank
that is furthest behind is the one that the others wait for. Then every rank writes its stacks, and ends.
"""

import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from torch._C._distributed_c10d import Store

EXIT_CODE = 3
_CHECKS = 8  # in each time limit
_VERDICT = "davinci/verdict"
_FAREWELL = 5.0  # seconds


class Beat(NamedTuple):
    """What a rank's thread says: how often it has, and where the work is. `moves`: how often that has changed."""

    beats: int
    moves: int
    step: int
    phase: str
    host: str
    pid: int


_UNHEARD = Beat(0, 0, 0, "start", "unknown host", 0)


class _Seen(NamedTuple):
    """Another rank's last beat, and since when, by this rank's clock, it has been silent, and still."""

    beat: Beat
    silent: float
    still: float


class Watchdog:
    """`seconds`: how long a rank may be silent, or the work of all stand still; `stacks`: where to write them."""

    def __init__(self, store: Store, rank: int, size: int, seconds: float, stacks: Path) -> None:
        self._store, self._rank = store, rank
        self._seconds, self._stacks = seconds, stacks
        self._watched = range(size) if rank == 0 else range(1 if rank == 1 else 0)
        self._beat = Beat(0, 0, 0, "start", socket.gethostname(), os.getpid())
        now = time.monotonic()
        self._seen = {rank: _Seen(_UNHEARD, now, now) for rank in self._watched}
        self._ended = threading.Event()
        self._answered = now

    def at(self, step: int | None = None, phase: str | None = None) -> None:
        """The rank's work has come so far."""
        beat = self._beat
        self._beat = beat._replace(
            moves=beat.moves + 1,
            step=beat.step if step is None else step,
            phase=beat.phase if phase is None else phase,
        )

    @contextmanager
    def watching(self) -> Iterator[None]:
        """In the block a run that stands still is ended, with exit code 3 on every rank that can."""
        threads = [threading.Thread(target=each, daemon=True) for each in (self._watch, self._guard)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._ended.set()
            threads[1].join()  # the other may wait for a store that has gone

    def _watch(self) -> None:
        """Through the store, which another process keeps: the launcher, or rank 0."""
        try:
            self._say()
            while not self._ended.wait(self._period):
                self._say()
                verdict = self._judge()
                if verdict is not None and not self._store.check([_VERDICT]):
                    self._store.set(_VERDICT, verdict)
                if self._store.check([_VERDICT]):
                    self._end(self._store.get(_VERDICT).decode())
                self._answered = time.monotonic()
        except RuntimeError as error:  # torch's DistError among them
            if not self._ended.wait(_FAREWELL):  # at a run's end rank 0 may leave first
                self._end(f"{self._keeper()} is gone: {str(error).splitlines()[0]}")

    def _guard(self) -> None:
        """Without the store: a keeper that is stopped answers no more, and has every other rank wait."""
        while not self._ended.wait(self._period):
            silent = time.monotonic() - self._answered
            if silent > self._seconds + self._period:
                self._end(f"{self._keeper()} has been silent for {silent:.0f} s: it is stopped, or gone")

    @property
    def _period(self) -> float:
        return self._seconds / _CHECKS

    def _keeper(self) -> str:
        known = self._seen.get(0)
        return _name(0, known.beat) + " which keeps the store," if known else "rank 0, which keeps the store,"

    def _say(self) -> None:
        self._beat = self._beat._replace(beats=self._beat.beats + 1)
        self._store.set(f"davinci/beat/{self._rank}", orjson.dumps(list(self._beat)).decode())

    def _judge(self) -> str | None:
        """Why the run should end, as far as this rank can tell."""
        now = time.monotonic()
        for rank in self._watched:
            self._look_at(rank, now)
        for rank, seen in self._seen.items():
            if now - seen.silent > self._seconds:
                return f"{_name(rank, seen.beat)} has been silent for {now - seen.silent:.0f} s: it is stopped, or gone"
        if self._rank == 0:
            still = now - max(seen.still for seen in self._seen.values())
            if still > self._seconds:
                rank, seen = min(self._seen.items(), key=lambda item: (item[1].beat.step, item[1].beat.moves))
                return f"nothing has moved for {still:.0f} s: {_name(rank, seen.beat)} is the furthest behind"
        return None

    def _look_at(self, rank: int, now: float) -> None:
        key = f"davinci/beat/{rank}"
        if not self._store.check([key]):
            return
        beat = Beat(*orjson.loads(self._store.get(key)))
        known = self._seen[rank]
        silent = known.silent if beat.beats == known.beat.beats else now
        still = known.still if beat.moves == known.beat.moves else now
        self._seen[rank] = _Seen(beat, silent, still)

    def _end(self, verdict: str) -> None:
        if self._watched:
            print(f"error: {verdict}; what each rank does stands in {self._stacks}", file=sys.stderr, flush=True)
        # In a thread: the disk may be what the run waits for, and then this would too.
        threading.Thread(target=self._write_stacks, args=(verdict,), daemon=True).start()
        # A launcher ends all ranks when the first one ends, and rank 0 may keep the store: the others read it first.
        time.sleep((2.5 if self._rank == 0 else 1.25) * self._period)
        os._exit(EXIT_CODE)

    def _write_stacks(self, verdict: str) -> None:
        try:
            self._stacks.mkdir(parents=True, exist_ok=True)
            with (self._stacks / f"rank_{self._rank:05d}.txt").open("w") as file:
                file.write(f"{verdict}\n\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            print(f"rank {self._rank} cannot write its stacks: {error.strerror}", file=sys.stderr, flush=True)
            faulthandler.dump_traceback(sys.stderr, all_threads=True)


def _name(rank: int, beat: Beat) -> str:
    return f"rank {rank} ({beat.host}, process {beat.pid}), at step {beat.step}, {beat.phase},"


def store_of_its_own(store: Any) -> Store:
    """Connect to the same store again: on a shared connection, a rank that waits for a key would hold up its thread."""
    cloned: Store = store.clone()
    return cloned
