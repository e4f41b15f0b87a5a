"""What a conversation has had so far, on disk as it happens, so that a killed rollout goes on where it was.

Its lines are: {"restarts"}, then for each step {"reply", "events"} and {"results"}.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from data_prep.io.errors import DAMAGE


class RolloutJournal:
    """Lines that an earlier start has written are `recorded`; new ones follow them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.restarts = 0
        self.recorded: list[dict[str, Any]] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        self.load()

    def load(self) -> None:
        """Read what is written, up to a line that was cut off."""
        found, whole = list[dict[str, Any]](), 0
        for line in self._path.read_bytes().split(b"\n")[:-1] if self._path.exists() else []:
            try:
                found.append(dict(orjson.loads(line)))
            except DAMAGE:
                break
            whole += len(line) + 1
        if found:
            self.restarts, self.recorded = int(found[0].get("restarts", 0)), found[1:]
            os.truncate(self._path, whole)
        else:
            self._begin()

    def _begin(self) -> None:
        self._path.write_bytes(orjson.dumps({"restarts": self.restarts}, option=orjson.OPT_APPEND_NEWLINE))

    def add(self, line: Mapping[str, Any]) -> None:
        """Keep a line."""
        with self._path.open("ab") as file:
            file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))

    def start_anew(self) -> None:
        """Forget all lines; that it happened is kept."""
        self.restarts += 1
        self.recorded = []
        self._begin()
