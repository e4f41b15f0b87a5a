"""Where a long run was: so that after kill -9 it goes on and ends with the same bytes."""

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from data_prep.io.errors import InputError
from data_prep.io.files import PART, read_json, write_json

State = dict[str, Any]


class ResumeJournal:
    """The last known state of a run beside its unfinished output. `settings` tell one run from another."""

    def __init__(self, prefix: Path, settings: State) -> None:
        self._path = prefix.with_name(f"{prefix.name}.journal{PART}")
        self._settings = settings
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def read(self) -> State | None:
        """The state that an earlier run with the same settings left, if any."""
        try:
            entry = read_json(self._path)
        except InputError:  # there is none, or it is not ours
            return None
        same = isinstance(entry, dict) and entry.get("settings") == self._settings
        return entry["state"] if same else None

    def write(self, state: State, files: Sequence[Path]) -> None:
        """Put `files` and then the state on disk, in the background; skipped while an earlier write is under way."""
        if self._writing is not None and not self._writing.done():
            return
        self.settle()
        self._writing = self._thread.submit(self._write, state, files)

    def _write(self, state: State, files: Sequence[Path]) -> None:
        for path in files:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        write_json(self._path, {"settings": self._settings, "state": state})

    def settle(self) -> None:
        """Wait for a write under way, and raise what went wrong in it."""
        if self._writing is not None:
            self._writing.result()

    def remove(self) -> None:
        """The run has ended: forget where it was."""
        self._thread.shutdown()
        self._path.unlink(missing_ok=True)
