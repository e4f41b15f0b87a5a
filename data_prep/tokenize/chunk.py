"""Some whole records of one input, where reading goes on behind them, and which fields of records are read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.io.errors import InputError

CHUNK_BYTES = 2 << 20  # bounds memory and still keeps every core busy
MAX_RECORD_BYTES = 64 << 20  # more is no document: the record is left out, and never held


@dataclass(frozen=True)
class ReadCursor:
    """Where reading goes on: number of the input, offset (bytes of its text, or rows), number of the next record."""

    input: int = 0
    offset: int = 0
    record: int = 1


@dataclass(frozen=True)
class Chunk:
    """Some whole records of one input: lines of JSON, or rows of a table in Arrow's stream format.

    `first` is the number of the first record. `broken`: why the chunk's one record cannot be read.
    """

    path: Path
    first: int
    after: ReadCursor
    lines: bytes | None = None
    rows: bytes | None = None
    broken: str | None = None

    @property
    def size(self) -> int:
        """Bytes of the records."""
        return len(self.lines or self.rows or b"")


def too_long(path: Path, first: int, after: ReadCursor) -> Chunk:
    """In place of a record that is longer than any may be."""
    return Chunk(path, first, after, broken=f"is longer than {MAX_RECORD_BYTES >> 20} MiB")


class BrokenRecord(ValueError):
    """Why a record cannot be used."""


@dataclass(frozen=True)
class Columns:
    """Which fields of a record are read: all of one of the `alternatives`, and those of `optional` that are there.

    A field may be OUTER.INNER, one level into an object. `whole`: whatever else a record holds is read too.
    """

    alternatives: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...] = ()
    whole: bool = False

    def of_table(self, path: Path, known: Sequence[str]) -> list[str]:
        """The columns of a table to read. Raises InputError where it lacks some of every alternative."""
        for wanted in self.alternatives:
            columns = [name if name in known else name.partition(".")[0] for name in wanted]
            if all(column in known for column in columns):
                if self.whole:
                    return list(known)
                return list(dict.fromkeys([*columns, *(name for name in self.optional if name in known)]))
        missing = " nor ".join(repr(name) for name in self.alternatives[0] if name not in known)
        raise InputError(f"{path} has no column {missing}; its columns are: {', '.join(known)}")
