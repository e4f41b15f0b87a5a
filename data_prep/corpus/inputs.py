"""Input files in chunks: cheap to cut in one process, parsed where they are encoded.

A path is a file (.jsonl, .json, plain or .gz or .zst; .parquet), a directory (one that `datasets` saved, else every
such file below it) or a glob pattern.
"""

import glob
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from data_prep.errors import InputError
from data_prep.files import read_chunks

if TYPE_CHECKING:
    import pyarrow

CHUNK_BYTES = 2 << 20  # bounds memory and still keeps every core busy
_ROWS_PER_BATCH = 1024
_LINES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst")
_SUFFIXES = (*_LINES, ".parquet")


@dataclass(frozen=True)
class Place:
    """Where reading goes on: number of the input, offset (bytes of its text, or rows), number of the next record."""

    input: int = 0
    offset: int = 0
    record: int = 1


@dataclass(frozen=True)
class Chunk:
    """Some whole records of one input: lines of JSON, or rows of a table. `first` is the number of the first one."""

    path: Path
    first: int
    after: Place
    lines: bytes | None = None
    rows: "pyarrow.RecordBatch | None" = None


class BrokenRecord(ValueError):
    """A line that holds no JSON object."""


def expand(arguments: list[str]) -> list[Path]:
    """Files and saved datasets behind the arguments, in the order given, those of one argument sorted."""
    found: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        if path.exists():
            found += _files_below(path) if path.is_dir() and not _is_saved_dataset(path) else [path]
        elif matches := sorted(glob.glob(argument, recursive=True)):  # noqa: PTH207, it may be absolute
            found += expand(matches)
        elif glob.has_magic(argument):
            raise InputError(f"{argument} matches no file")
        else:
            raise InputError(f"{path} does not exist")
    for path in found:
        if path.is_file() and not path.name.endswith(_SUFFIXES):
            raise InputError(f"{path} is no known input: give {', '.join(_SUFFIXES)} or a saved dataset")
    return found


def _files_below(directory: Path) -> list[Path]:
    files = sorted(path for path in directory.rglob("*") if path.name.endswith(_SUFFIXES))
    if not files:
        raise InputError(f"{directory} holds no saved dataset and no file that ends in {', '.join(_SUFFIXES)}")
    return files


def _is_saved_dataset(path: Path) -> bool:
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def read(paths: list[Path], columns: list[str], place: Place | None = None) -> Iterator[Chunk]:
    """Chunks of all inputs, from a place (`after` of a chunk) on."""
    place = place or Place()
    for number in range(place.input, len(paths)):
        yield from _read_one(paths[number], columns, place if number == place.input else Place(number))


def _read_one(path: Path, columns: list[str], place: Place) -> Iterator[Chunk]:
    if path.is_dir():
        yield from _read_saved_dataset(path, columns, place)
    elif path.suffix == ".parquet":
        yield from _read_parquet(path, columns, place)
    else:
        yield from _read_lines(path, place)


def _read_lines(path: Path, place: Place) -> Iterator[Chunk]:
    pending: list[bytes] = []
    for block in read_chunks(path, CHUNK_BYTES, place.offset):
        cut = block.rfind(b"\n") + 1
        if not cut:
            pending.append(block)  # a line longer than a block
            continue
        chunk = _lines_from(path, place, b"".join([*pending, block[:cut]]))
        yield chunk
        place, pending = chunk.after, [block[cut:]]
    if rest := b"".join(pending):
        yield _lines_from(path, place, rest)


def _lines_from(path: Path, place: Place, lines: bytes) -> Chunk:
    after = Place(place.input, place.offset + len(lines), place.record + lines.count(b"\n"))
    return Chunk(path, place.record, after, lines=lines)


def _read_parquet(path: Path, columns: list[str], place: Place) -> Iterator[Chunk]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
        _require_columns(path, columns, file.schema_arrow.names)
        yield from _number_rows(path, file.iter_batches(_ROWS_PER_BATCH, columns=columns), place)
    except ArrowException as error:
        raise InputError(f"{path} is not a whole Parquet file: {error}") from None


def _read_saved_dataset(path: Path, columns: list[str], place: Place) -> Iterator[Chunk]:
    from datasets import DatasetDict, load_from_disk

    loaded = load_from_disk(path)
    splits = loaded.values() if isinstance(loaded, DatasetDict) else [loaded]
    for split in splits:
        _require_columns(path, columns, split.column_names)
    tables = (
        table
        for split in splits
        for table in split.select_columns(columns).with_format("arrow").iter(batch_size=_ROWS_PER_BATCH)
    )
    yield from _number_rows(path, (batch for table in tables for batch in table.to_batches()), place)


def _require_columns(path: Path, columns: list[str], known: list[str]) -> None:
    for column in columns:
        if column not in known:
            raise InputError(f"{path} has no column '{column}'; its columns are: {', '.join(known)}")


def _number_rows(path: Path, batches: Iterator["pyarrow.RecordBatch"], place: Place) -> Iterator[Chunk]:
    row = 0
    for batch in batches:
        skip = max(0, min(place.offset - row, batch.num_rows))
        row += batch.num_rows
        if rows := batch.num_rows - skip:
            yield Chunk(path, row - rows + 1, Place(place.input, row, row + 1), rows=batch.slice(skip))


def records_of(chunk: Chunk) -> Iterator[tuple[int, dict[str, Any] | BrokenRecord]]:
    """Each record with its number; for a line that is no JSON object, what is wrong with it. Empty lines are none."""
    if chunk.rows is not None:
        yield from enumerate(chunk.rows.to_pylist(), chunk.first)
        return
    assert chunk.lines is not None
    for number, line in enumerate(chunk.lines.split(b"\n"), chunk.first):
        if line and not line.isspace():
            yield number, _parse(line)


def _parse(line: bytes) -> dict[str, Any] | BrokenRecord:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return BrokenRecord(f"is not JSON: {error}")
    if not isinstance(record, dict):
        return BrokenRecord(f"holds a {type(record).__name__}; it must be a JSON object")
    return record
