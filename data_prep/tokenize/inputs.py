"""Input files in chunks: cheap to cut in one process, parsed where they are encoded.

A path is a file (.jsonl, .json, plain or .gz or .zst; .parquet), a directory (one that `datasets` saved, else every
such file below it) or a glob pattern. A .json file holds lines, or one array of records.
"""

import codecs
import glob
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from data_prep.io.errors import InputError
from data_prep.io.files import read_chunks

if TYPE_CHECKING:
    import pyarrow

CHUNK_BYTES = 2 << 20  # bounds memory and still keeps every core busy
_MOST_ROWS = 1024
_JSON = json.JSONDecoder()
_BRACE = ord("{")
_BRACKET = b"["
_ARRAYS = (".json", ".json.gz", ".json.zst")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LINES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst")
_SUFFIXES = (*_LINES, ".parquet")


@dataclass(frozen=True)
class ReadCursor:
    """Where reading goes on: number of the input, offset (bytes of its text, or rows), number of the next record."""

    input: int = 0
    offset: int = 0
    record: int = 1


@dataclass(frozen=True)
class Chunk:
    """Some whole records of one input: lines of JSON, or rows of a table. `first` is the number of the first one."""

    path: Path
    first: int
    after: ReadCursor
    lines: bytes | None = None
    rows: "pyarrow.RecordBatch | None" = None


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


def expand(arguments: list[str]) -> list[Path]:
    """Files and saved datasets behind the arguments, in the order given; those of one argument sorted, each once."""
    found: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        if path.exists():
            found += _inputs_at(path)
        elif matches := sorted(glob.glob(argument, recursive=True)):  # noqa: PTH207, it may be absolute
            found += dict.fromkeys(inside for match in matches for inside in _inputs_at(Path(match)))
        elif glob.has_magic(argument):
            raise InputError(f"{argument} matches no file")
        else:
            raise InputError(f"{path} does not exist")
    return found


def _inputs_at(path: Path) -> list[Path]:
    if path.is_dir() and not _is_saved_dataset(path):
        inside = list(_inputs_below(path))
        if not inside:
            raise InputError(f"{path} holds no saved dataset and no file that ends in {', '.join(_SUFFIXES)}")
        return inside
    if path.is_file() and not path.name.endswith(_SUFFIXES):
        raise InputError(f"{path} is no known input: give {', '.join(_SUFFIXES)} or a saved dataset")
    return [path]


def _inputs_below(directory: Path) -> Iterator[Path]:
    for child in sorted(directory.iterdir()):
        if _is_saved_dataset(child) or (child.is_file() and child.name.endswith(_SUFFIXES)):
            yield child
        elif child.is_dir():
            yield from _inputs_below(child)


def _is_saved_dataset(path: Path) -> bool:
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def read(paths: list[Path], columns: Columns, cursor: ReadCursor | None = None) -> Iterator[Chunk]:
    """Chunks of all inputs, from a place (`after` of a chunk) on."""
    cursor = cursor or ReadCursor()
    for number in range(cursor.input, len(paths)):
        yield from _read_one(paths[number], columns, cursor if number == cursor.input else ReadCursor(number))


def _read_one(path: Path, columns: Columns, cursor: ReadCursor) -> Iterator[Chunk]:
    if path.is_dir():
        yield from _read_saved_dataset(path, columns, cursor)
    elif path.suffix == ".parquet":
        yield from _read_parquet(path, columns, cursor)
    elif _is_array(path):
        yield from _read_array(path, cursor)
    else:
        yield from _read_lines(path, cursor)


def check_columns(paths: list[Path], columns: Columns) -> None:
    """Raise InputError for a table without the columns: before hours of work, not after them."""
    for path in paths:
        if path.is_dir():
            columns.of_table(path, _saved_dataset(path).column_names)
        elif path.suffix == ".parquet":
            from pyarrow import ArrowException
            from pyarrow.parquet import read_schema

            try:
                names = read_schema(path).names
            except (ArrowException, OSError) as error:
                raise InputError(f"{path} is not a whole Parquet file: {error}") from None
            columns.of_table(path, names)


def _is_array(path: Path) -> bool:
    """Whether a file holds one JSON array of records rather than lines."""
    if not path.name.endswith(_ARRAYS):
        return False
    for block in read_chunks(path, CHUNK_BYTES):
        if begun := block.removeprefix(_BYTE_ORDER_MARK).lstrip():
            return begun.startswith(_BRACKET)
    return False


def _read_array(path: Path, cursor: ReadCursor) -> Iterator[Chunk]:
    """The records of an array as lines; the cursor's offset counts records here."""
    lines: list[bytes] = []
    held = 0
    for record in itertools.islice(_items_of_array(path), cursor.offset, None):
        lines.append(_as_line(record))
        held += len(lines[-1])
        if held >= CHUNK_BYTES:
            chunk = _records_from(path, cursor, lines)
            yield chunk
            cursor, lines, held = chunk.after, [], 0
    if lines:
        yield _records_from(path, cursor, lines)


def _as_line(record: Any) -> bytes:
    try:
        return json.dumps(record).encode()
    except RecursionError:
        return b"(nested too deeply)"  # a broken record


def _items_of_array(path: Path) -> Iterator[Any]:
    """The items of one array, an item in memory at a time. Bytes that are no UTF-8 make their record a broken one."""
    text, at, opened, ended = "", 0, False, False
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    blocks = read_chunks(path, CHUNK_BYTES)
    while True:
        at = _skip(text, at, " \t\r\n," if opened else " \t\r\n\ufeff")
        if not opened and text[at : at + 1] == "[":
            opened, at = True, at + 1
            continue
        if opened and text[at : at + 1] == "]":
            if text[at + 1 :].strip() or any(block.strip() for block in blocks):
                raise InputError(f"{path} is no whole JSON array of records: something follows it")
            return
        try:
            item, end = _JSON.raw_decode(text, at)
            if end == len(text) and not ended:
                raise ValueError("a number may go on")
        except RecursionError:
            raise InputError(f"{path} is no JSON array of records: one is nested too deeply") from None
        except ValueError as error:
            if ended:
                raise InputError(f"{path} is no whole JSON array of records: {error}") from None
            count = 1 + (len(text) - at) // CHUNK_BYTES  # twice as much each time: a long record is not parsed for ever
            more = "".join(decoder.decode(block) for block in itertools.islice(blocks, count))
            text, at, ended = text[at:] + more, 0, not more
            continue
        yield item
        at = end


def _skip(text: str, at: int, characters: str) -> int:
    while at < len(text) and text[at] in characters:
        at += 1
    return at


def _records_from(path: Path, cursor: ReadCursor, lines: list[bytes]) -> Chunk:
    after = ReadCursor(cursor.input, cursor.offset + len(lines), cursor.record + len(lines))
    return Chunk(path, cursor.record, after, lines=b"\n".join(lines))


def _read_lines(path: Path, cursor: ReadCursor) -> Iterator[Chunk]:
    pending: list[bytes] = []
    for block in read_chunks(path, CHUNK_BYTES, cursor.offset):
        cut = block.rfind(b"\n") + 1
        if not cut:
            pending.append(block)  # a line longer than a block
            continue
        chunk = _lines_from(path, cursor, b"".join([*pending, memoryview(block)[:cut]]))
        yield chunk
        cursor, pending = chunk.after, [block[cut:]]
    if rest := b"".join(pending):
        yield _lines_from(path, cursor, rest)


def _lines_from(path: Path, cursor: ReadCursor, lines: bytes) -> Chunk:
    after = ReadCursor(cursor.input, cursor.offset + len(lines), cursor.record + lines.count(b"\n"))
    return Chunk(path, cursor.record, after, lines=lines)


def _read_parquet(path: Path, columns: Columns, cursor: ReadCursor) -> Iterator[Chunk]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path, pre_buffer=False, buffer_size=CHUNK_BYTES)  # else it holds a whole row group
        names = columns.of_table(path, file.schema_arrow.names)
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        rows = _rows_per_batch(sum(group.total_byte_size for group in groups), file.metadata.num_rows)
        yield from _number_rows(path, file.iter_batches(rows, columns=names), cursor)
    except ArrowException as error:
        raise InputError(f"{path} is not a whole Parquet file: {error}") from None


def _rows_per_batch(total_bytes: int, rows: int) -> int:
    """So many that a batch is about as large as a chunk of lines."""
    return max(1, min(_MOST_ROWS, CHUNK_BYTES * rows // max(total_bytes, 1)))


def _read_saved_dataset(path: Path, columns: Columns, cursor: ReadCursor) -> Iterator[Chunk]:
    loaded = _saved_dataset(path)
    names = columns.of_table(path, loaded.column_names)
    rows = _rows_per_batch(loaded.data.nbytes, len(loaded.data))
    tables = loaded.select_columns(names).with_format("arrow").iter(batch_size=rows)
    yield from _number_rows(path, (batch for table in tables for batch in table.to_batches()), cursor)


def _saved_dataset(path: Path) -> Any:
    from datasets import DatasetDict, load_from_disk

    loaded = load_from_disk(path)
    if isinstance(loaded, DatasetDict):
        if len(loaded) != 1:
            raise InputError(
                f"{path} holds the splits {', '.join(loaded)}: give one, as in {path / next(iter(loaded))}"
            )
        [loaded] = loaded.values()
    return loaded


def _number_rows(path: Path, batches: Iterator["pyarrow.RecordBatch"], cursor: ReadCursor) -> Iterator[Chunk]:
    row = 0
    for batch in batches:
        skip = max(0, min(cursor.offset - row, batch.num_rows))
        row += batch.num_rows
        if rows := batch.num_rows - skip:
            yield Chunk(path, row - rows + 1, ReadCursor(cursor.input, row, row + 1), rows=batch.slice(skip))


def records_of(chunk: Chunk) -> Iterator[tuple[int, dict[str, Any] | BrokenRecord]]:
    """Each record with its number; for a line that is no JSON object, what is wrong with it. Empty lines are none."""
    if chunk.rows is not None:
        yield from enumerate(_rows_of(chunk.rows), chunk.first)
        return
    assert chunk.lines is not None
    lines, start = memoryview(chunk.lines), 0  # nothing is copied on the way to the parser
    for number in itertools.count(chunk.first):
        end = chunk.lines.find(b"\n", start)
        line = lines[start:] if end < 0 else lines[start:end]
        if line and line[0] != _BRACE:
            line = memoryview(line.tobytes().removeprefix(_BYTE_ORDER_MARK if number == 1 else b"").strip())
        if line:
            yield number, _parse(line)
        if end < 0:
            return
        start = end + 1


def _rows_of(rows: "pyarrow.RecordBatch") -> Iterator[dict[str, Any] | BrokenRecord]:
    try:
        yield from rows.to_pylist()
    except UnicodeDecodeError:
        for number in range(rows.num_rows):
            try:
                [row] = rows.slice(number, 1).to_pylist()
                yield row
            except UnicodeDecodeError as error:
                yield BrokenRecord(f"is not UTF-8: {error}")


def _parse(line: memoryview) -> dict[str, Any] | BrokenRecord:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        try:
            record = json.loads(line.tobytes())  # takes NaN, which Python writes
            orjson.dumps(record)  # and half characters, which are no text
        except (ValueError, TypeError, RecursionError):
            return BrokenRecord(f"is not JSON: {error}")
    if not isinstance(record, dict):
        return BrokenRecord(f"holds a {type(record).__name__}; it must be a JSON object")
    return record
