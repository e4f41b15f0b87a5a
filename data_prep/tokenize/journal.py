"""Where a long run was: so that after kill -9 it goes on and ends with the same bytes."""

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from data_prep.io.errors import DAMAGE, InputError
from data_prep.io.files import PART, read_json, write_json

State = dict[str, Any]


class ResumeJournal:
    """The last known state of a run beside its unfinished output, and the state at the beginning of its last input.

    `settings` tell one run from another; `files` (a name and stamps of each input) one input. A state holds a `place`,
    which says the `input` and the `offset` where it goes on.
    """

    def __init__(self, prefix: Path, settings: State, files: list[Any]) -> None:
        self._path = prefix.with_name(f"{prefix.name}.journal{PART}")
        self._settings, self._files = settings, files
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def read(self) -> tuple[State | None, State | None]:
        """The latest state that an earlier run left with these settings, and with these inputs as far as it had read.

        An input that was corrected since, or left out, is read anew; those before it are not. The second state is that
        at the beginning of its input.
        """
        try:
            entry = read_json(self._path)
        except InputError:  # there is none, or it is not ours
            return None, None
        if not isinstance(entry, dict) or entry.get("settings") != self._settings or "files" not in entry:
            return None, None
        try:
            state, at_input = (
                each if each and self._was_read(each["place"], entry["files"]) else None
                for each in (entry["state"], entry["at_input"])
            )
        except DAMAGE:
            return None, None
        return state or at_input, at_input

    def _was_read(self, place: State, files: list[Any]) -> bool:
        read = place["input"] + (place["offset"] > 0)
        return bool(self._files[:read] == files[:read])

    def write(self, state: State, at_input: State | None, files: Sequence[Path]) -> None:
        """Put `files` and then the states on disk, in the background; skipped while an earlier write is under way."""
        if self._writing is not None and not self._writing.done():
            return
        self.settle()
        self._writing = self._thread.submit(self._write, state, at_input, files)

    def _write(self, state: State, at_input: State | None, files: Sequence[Path]) -> None:
        for path in files:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        entry = {"settings": self._settings, "files": self._files, "state": state, "at_input": at_input}
        write_json(self._path, entry)

    def settle(self) -> None:
        """Wait for a write under way, and raise what went wrong in it."""
        if self._writing is not None:
            self._writing.result()

    def remove(self) -> None:
        """The run has ended: forget where it was."""
        self._thread.shutdown()
        self._path.unlink(missing_ok=True)
