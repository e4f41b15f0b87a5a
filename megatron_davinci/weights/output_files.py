"""Files of a conversion: each is written once, in order, hashed on the way, and noted when it is whole.

A killed conversion is taken up behind the last file that was noted.
"""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import orjson
from xxhash import xxh3_64

from data_prep import InputError
from data_prep.io.files import PART, part_of, publish

_JOURNAL = "journal.jsonl"


class HashedFile:
    """A file that only grows; see `blobs.Sink`."""

    def __init__(self, path: Path, count: Callable[[int], None]) -> None:
        self._path, self._count = path, count
        self._part = part_of(path)
        self._file = self._part.open("wb", buffering=0)
        self._digest = xxh3_64()
        self.position = 0

    def write(self, data: Any) -> int:
        """Append a buffer."""
        view = memoryview(data).cast("B")
        written = 0
        while written < len(view):
            written += self._file.write(view[written:])
        self._digest.update(view)
        self.position += len(view)
        self._count(len(view))
        return len(view)

    def finish(self) -> dict[str, Any]:
        """Give the file its name; returns its size and hash."""
        self._file.close()
        publish(self._part, self._path)
        return {"bytes": self.position, "xxh3_64": self._digest.hexdigest()}


class ConversionJournal:
    """What has been written of a directory that is not yet complete; `identity` determines what it will hold.

    Whatever else lies there is removed, if the directory is a conversion's. Raises InputError where it is not.
    """

    def __init__(self, directory: Path, identity: dict[str, Any]) -> None:
        self._directory, self.path = directory, directory / _JOURNAL
        self._lock = Lock()
        first = orjson.dumps({"conversion": 1, **identity}) + b"\n"
        begun = self.path.with_name(_JOURNAL + PART)
        there = [path for path in directory.iterdir() if path != begun] if directory.is_dir() else []
        if directory.is_symlink() or (there and not self._is_ours()):
            raise InputError(f"{directory} is there, and no conversion has made it: remove it, or choose another name")
        directory.mkdir(exist_ok=True)
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.is_file() else []
        lines = [line for line in lines if line.endswith(b"\n")] if lines[:1] == [first] else [first]
        lines = [first, *(line for line in lines[1:] if _is_entry(line))]
        noted = [orjson.loads(line) for line in lines[1:]]
        self.files = {entry["file"]: entry for entry in noted if self._whole(entry)}
        for path in directory.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in self.files and path != self.path:
                path.unlink()
        begun.write_bytes(b"".join(lines))  # without a last line that a full disk left unfinished
        publish(begun, self.path)

    def _is_ours(self) -> bool:
        return self.path.is_file() and self.path.read_bytes()[:15] == b'{"conversion":1'

    def note(self, entry: dict[str, Any]) -> None:
        """A file is whole; `entry` has its name and what else is to be known of it."""
        with self._lock, self.path.open("ab") as file:
            file.write(orjson.dumps(entry) + b"\n")
            file.flush()
            os.fsync(file.fileno())
            self.files[entry["file"]] = entry

    def _whole(self, entry: dict[str, Any]) -> bool:
        path = self._directory / entry["file"]
        return path.is_file() and path.stat().st_size == entry["bytes"]


def _is_entry(line: bytes) -> bool:
    """Whether a line of a journal can be this project's: it names a file of this directory, and its size."""
    try:
        entry = orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    name, size = (entry.get("file"), entry.get("bytes")) if isinstance(entry, dict) else (None, None)
    return isinstance(name, str) and Path(name).name == name and type(size) is int


def write_all(
    names: list[str], write: Callable[[str], dict[str, Any]], journal: ConversionJournal, workers: int
) -> None:
    """Write the files that the journal does not yet have, several at once."""
    missing = [name for name in names if name not in journal.files]
    with ThreadPoolExecutor(workers) as pool:
        jobs = [pool.submit(lambda name: journal.note({"file": name, **write(name)}), name) for name in missing]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
