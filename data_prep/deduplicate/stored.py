"""Values of many records on disk, written in order and read one record at a time: nothing is held in memory."""

import os
import struct
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from data_prep.io.files import make_parent

_END = struct.Struct("<Q")


class ValuesWriter:
    """Writes SHARD.values and SHARD.ends: all bytes end to end, and where each record's end."""

    def __init__(self, path: Path) -> None:
        make_parent(path)
        self._values = path.with_suffix(".values").open("wb")
        self._ends = path.with_suffix(".ends").open("wb")
        self._at = 0

    def add(self, value: bytes) -> None:
        """The bytes of the next record."""
        self._at += self._values.write(value)
        self._ends.write(_END.pack(self._at))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._values.close()
        self._ends.close()


class Values:
    """Reads what `ValuesWriter` wrote of all shards; records are numbered through, `base` (shards + 1,) by shard.

    Files are read, not mapped: mapped pages would count as this process's memory.
    """

    def __init__(self, folder: Path, base: npt.NDArray[np.int64]) -> None:
        self._base = base
        self._files = ExitStack()
        shards = [folder / f"{shard:05d}" for shard in range(len(base) - 1)]
        self._values, self._ends = (
            [self._files.enter_context(path.with_suffix(suffix).open("rb")) for path in shards]
            for suffix in (".values", ".ends")
        )

    def __getitem__(self, record: int) -> bytes:
        shard, at = place_of(record, self._base)
        ends = self._ends[shard].fileno()
        begin = _END.unpack(os.pread(ends, _END.size, (at - 1) * _END.size))[0] if at else 0
        end = _END.unpack(os.pread(ends, _END.size, at * _END.size))[0]
        return os.pread(self._values[shard].fileno(), end - begin, begin)

    def close(self) -> None:
        """Close all files."""
        self._files.close()


def place_of(record: int, base: npt.NDArray[np.int64]) -> tuple[int, int]:
    """Shard of a record, and its number there."""
    shard = int(np.searchsorted(base, record, "right")) - 1
    return shard, record - int(base[shard])
