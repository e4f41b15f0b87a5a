"""Tables in chunks of rows: Parquet files, and directories that `datasets` saved.

What a file says of its sizes is anybody's: a chunk is cut by the bytes that its rows come to, and text that is stored
once and named a million times stays stored once until its chunk is read.
"""

import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from data_prep.io.errors import DAMAGE, InputError, describe
from data_prep.io.files import check_regular_file, read_json, refuse_link_outside
from data_prep.io.limited_process import LimitedProcess, Mark, ProcessEnded
from data_prep.tokenize.chunk import CHUNK_BYTES, MAX_RECORD_BYTES, BrokenRecord, Chunk, Columns, ReadCursor, too_long

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.parquet import ParquetFile

_MOST_ROWS = 1024  # of a batch
_SECONDS = 120.0  # for one batch
_LOST = "lost"  # where reading was
_ITEM_BYTES = 8  # of a number, and of an item of a list beside its value


def is_saved_dataset(path: Path) -> bool:
    """Whether a directory is one that `datasets` saved."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


class TableReader:
    """Tables read in a process with limits: pyarrow ends the process on some damaged files. Use it as a context."""

    def __init__(self) -> None:
        self._process: LimitedProcess | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.close()

    def names(self, path: Path) -> list[str]:
        """Names of a table's columns. Raises InputError where it cannot be read."""
        names: list[str] = self._ask(path, "names", path)
        return names

    def chunks(self, path: Path, columns: Columns, cursor: ReadCursor) -> Iterator[Chunk]:
        """Chunks of a table from a row on; the cursor's offset counts rows."""
        self._ask(path, "open", path, columns, cursor)
        while (chunk := self._ask(path, "next")) is not None:
            if chunk == _LOST:  # somebody ended the process, and the new one knows nothing
                self._ask(path, "open", path, columns, cursor)
                continue
            cursor = chunk.after
            yield chunk

    def _ask(self, path: Path, *question: Any) -> Any:
        try:
            if self._process is None:
                self._process = LimitedProcess(_start, (), _SECONDS)
            return self._process.call(question, _SECONDS)
        except ProcessEnded as end:
            raise InputError(f"{path} is not a whole table: reading it {end.reason}") from None


def _start() -> tuple[None, Callable[[tuple[Any, ...], Mark], Any]]:
    reading: list[Iterator[Chunk]] = []

    def answer(question: tuple[Any, ...], _mark: Mark) -> Any:
        match question:
            case ("names", path):
                with _refused_if_damaged(path):
                    return _names(path)
            case ("open", path, columns, cursor):
                reading[:] = [_chunks(path, columns, cursor)]
                return None
            case _:
                return next(reading[0], None) if reading else _LOST

    return None, answer


def _names(path: Path) -> list[str]:
    return list(_saved_dataset(path).column_names if path.is_dir() else _open_parquet(path).schema_arrow.names)


def _chunks(path: Path, columns: Columns, cursor: ReadCursor) -> Iterator[Chunk]:
    batches = _read_saved_dataset if path.is_dir() else _read_parquet
    with _refused_if_damaged(path):
        for row, batch in batches(path, columns, cursor.offset):
            skip = max(0, min(cursor.offset - row, batch.num_rows))
            if skip < batch.num_rows:
                batch.validate(full=True)  # offsets of a damaged file may lead anywhere
                yield from _cut(path, batch.slice(skip), ReadCursor(cursor.input, row + skip, row + skip + 1))


@contextmanager
def _refused_if_damaged(path: Path) -> Iterator[None]:
    from pyarrow import ArrowException

    try:
        yield
    except MemoryError:
        raise
    except (ArrowException, OSError, *DAMAGE) as error:
        raise InputError(f"{path} is not a whole table: {describe(error)}") from None


def _open_parquet(path: Path, stored_once: Sequence[str] = ()) -> "ParquetFile":
    from pyarrow.parquet import ParquetFile

    check_regular_file(path)
    # pre_buffer would hold a whole row group
    return ParquetFile(path, pre_buffer=False, buffer_size=CHUNK_BYTES, read_dictionary=list(stored_once))


def _read_parquet(path: Path, columns: Columns, start: int) -> Iterator[tuple[int, "pyarrow.RecordBatch"]]:
    """From the row group on in which row `start` lies."""
    metadata = _open_parquet(path).metadata
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    stored_once = {
        column.path_in_schema
        for group in groups
        for column in map(group.column, range(group.num_columns))
        if column.physical_type == "BYTE_ARRAY"
        and any("DICTIONARY" in each for each in column.encodings)
        and "." not in column.path_in_schema  # pyarrow does not read those of lists and structs so
    }
    file = _open_parquet(path, sorted(stored_once))
    names = columns.of_table(path, file.schema_arrow.names)
    rows = _rows_per_batch(sum(group.total_byte_size for group in groups), metadata.num_rows)
    ends = list(itertools.accumulate(group.num_rows for group in groups))
    first = bisect_right(ends, start)
    yield from _numbered(
        file.iter_batches(rows, range(first, len(groups)), columns=names), ends[first - 1] if first else 0
    )


def _numbered(batches: Iterable["pyarrow.RecordBatch"], row: int) -> Iterator[tuple[int, "pyarrow.RecordBatch"]]:
    """Each batch with the number of its first row."""
    for batch in batches:
        yield row, batch
        row += batch.num_rows


def _rows_per_batch(total_bytes: int, rows: int) -> int:
    """So many that a batch is about as large as a chunk of lines."""
    return max(1, min(_MOST_ROWS, CHUNK_BYTES * rows // max(total_bytes, 1)))


def _read_saved_dataset(path: Path, columns: Columns, start: int) -> Iterator[tuple[int, "pyarrow.RecordBatch"]]:
    loaded = _saved_dataset(path)
    names = columns.of_table(path, loaded.column_names)
    rows = _rows_per_batch(loaded.data.nbytes, len(loaded.data))
    rest = loaded.select_columns(names).select(range(min(start, len(loaded)), len(loaded)))
    tables = rest.with_format("arrow").iter(batch_size=rows)
    yield from _numbered((batch for table in tables for batch in table.to_batches()), min(start, len(loaded)))


def _saved_dataset(path: Path) -> Any:
    from datasets import DatasetDict, load_from_disk

    _refuse_links_outside(path)
    try:
        loaded = load_from_disk(path)
    except Exception as error:  # the library raises whatever a damaged file leads it to
        raise InputError(f"{path} is no whole saved dataset: {type(error).__name__}: {error}") from None
    if isinstance(loaded, DatasetDict):
        if len(loaded) != 1:
            raise InputError(
                f"{path} holds the splits {', '.join(loaded)}: give one, as in {path / next(iter(loaded))}"
            )
        [loaded] = loaded.values()
    return loaded


def _refuse_links_outside(path: Path) -> None:
    """Raise InputError where a saved dataset names files outside its own directory."""
    splits = read_json(path / "dataset_dict.json") if (path / "dataset_dict.json").is_file() else {}
    named = splits.get("splits") if isinstance(splits, dict) else None
    for directory in (path, *(path / str(split) for split in (named if isinstance(named, list) else ()))):
        state = read_json(directory / "state.json") if (directory / "state.json").is_file() else {}
        files = state.get("_data_files") if isinstance(state, dict) else None
        for file in files if isinstance(files, list) else ():
            name = PurePath(str(file.get("filename") if isinstance(file, dict) else file))
            if len(name.parts) != 1 or directory.parent not in (path, path.parent):
                raise InputError(f"{directory} names a file outside itself, {name}: it was refused")
            refuse_link_outside(directory / name)


def _cut(path: Path, batch: "pyarrow.RecordBatch", cursor: ReadCursor) -> Iterator[Chunk]:
    """A batch in chunks of about CHUNK_BYTES of decoded rows; a row that is longer than any may be is named alone."""
    sizes = sum((decoded_bytes(column) for column in batch.columns), np.zeros(batch.num_rows, np.int64))
    start = held = 0
    for row, size in enumerate(sizes.tolist()):
        if row > start and held + size > CHUNK_BYTES:
            yield _rows_from(path, batch, cursor, start, row)
            start, held = row, 0
        held += size
        if size > MAX_RECORD_BYTES:
            yield too_long(path, cursor.record + row, _after(cursor, row + 1))
            start, held = row + 1, 0
    if start < batch.num_rows:
        yield _rows_from(path, batch, cursor, start, batch.num_rows)


def _after(cursor: ReadCursor, rows: int) -> ReadCursor:
    return ReadCursor(cursor.input, cursor.offset + rows, cursor.record + rows)


def _rows_from(path: Path, batch: "pyarrow.RecordBatch", cursor: ReadCursor, start: int, end: int) -> Chunk:
    import pyarrow

    part = batch.slice(start, end - start)
    plain = [_stored_each(column) for column in part.columns]
    part = pyarrow.RecordBatch.from_arrays(plain, names=part.schema.names)
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, part.schema) as stream:
        stream.write_batch(part)
    return Chunk(path, cursor.record + start, _after(cursor, end), rows=sink.getvalue().to_pybytes())


def _stored_each(column: "pyarrow.Array") -> "pyarrow.Array":
    import pyarrow

    return column.dictionary_decode() if isinstance(column, pyarrow.DictionaryArray) else column


def decoded_bytes(array: "pyarrow.Array") -> npt.NDArray[np.int64]:
    """Bytes of each of an array's values, (values,), where text that is stored once counts each time."""
    import pyarrow
    import pyarrow.compute
    from pyarrow import types

    kind = array.type
    if types.is_dictionary(kind):
        each = np.append(decoded_bytes(array.dictionary), 0)
        numbers = array.indices.cast(pyarrow.int64()).fill_null(-1)
        return np.asarray(each[numbers.to_numpy(zero_copy_only=False)])
    if types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind):
        lengths = pyarrow.compute.binary_length(array).cast(pyarrow.int64()).fill_null(0)
        return np.asarray(lengths.to_numpy(zero_copy_only=False))
    if types.is_fixed_size_binary(kind):
        return np.full(len(array), kind.byte_width, np.int64)
    if types.is_fixed_size_list(kind):
        return (
            decoded_bytes(array.flatten()).reshape(-1, max(kind.list_size, 1)).sum(1)
            if array.null_count == 0
            else (np.full(len(array), int(decoded_bytes(array.flatten()).sum()), np.int64))
        )
    if types.is_struct(kind):
        return sum((decoded_bytes(field) for field in array.flatten()), np.zeros(len(array), np.int64))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_map(kind):
        before = np.concatenate([[0], np.cumsum(decoded_bytes(array.values) + _ITEM_BYTES)])
        ends = array.offsets.to_numpy(zero_copy_only=False)
        return np.asarray(before[ends[1:]] - before[ends[:-1]])
    return np.full(len(array), _ITEM_BYTES, np.int64)


def rows_of(stream: bytes) -> Iterator[dict[str, Any] | BrokenRecord]:
    """The rows of a chunk as dicts."""
    import pyarrow

    for rows in pyarrow.ipc.open_stream(stream):
        try:
            yield from rows.to_pylist()
        except (ValueError, OverflowError, pyarrow.ArrowException):
            for number in range(rows.num_rows):
                try:
                    [row] = rows.slice(number, 1).to_pylist()
                    yield row
                except UnicodeDecodeError as error:
                    yield BrokenRecord(f"is not UTF-8: {error}")
                except (ValueError, OverflowError, pyarrow.ArrowException) as error:
                    yield BrokenRecord(f"holds a value that cannot be read: {error}")
