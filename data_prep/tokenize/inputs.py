"""Input files in chunks: cheap to cut in one process, parsed where they are encoded.

A path is a file (.jsonl, .json, plain or .gz or .zst; .parquet), a directory (one that `datasets` saved, else every
such file below it) or a glob pattern. A .json file holds lines, or one array of records.
"""

import glob
from collections.abc import Iterator
from pathlib import Path

from data_prep.io.errors import InputError
from data_prep.io.files import read_chunks
from data_prep.tokenize.chunk import CHUNK_BYTES, MAX_RECORD_BYTES, Chunk, Columns, ReadCursor, too_long
from data_prep.tokenize.json_array import is_array, read_array
from data_prep.tokenize.tables import TableReader, is_saved_dataset

_LINES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst")
_OTHER_OUTPUTS = {
    "records": "davinci data build makes samples of them",
    "trajectories": "davinci data collect trajectories makes conversations of them",
    "tasks": "davinci data environments run has a model work on them",
}
_SUFFIXES = (*_LINES, ".parquet")


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
    if path.is_dir() and not is_saved_dataset(path):
        inside = [each for part in _parts_with_texts(path) for each in _inputs_below(part)]
        if not inside:
            raise InputError(f"{path} holds no saved dataset and no file that ends in {', '.join(_SUFFIXES)}")
        return inside
    if path.is_file() and not path.name.endswith(_SUFFIXES):
        raise InputError(f"{path} is no known input: give {', '.join(_SUFFIXES)} or a saved dataset")
    return [path]


def _parts_with_texts(directory: Path) -> list[Path]:
    """Where the texts lie in a directory: a step's own output holds what was left out, too. Raises InputError."""
    if not (directory / "summary.json").is_file():
        return [directory]
    folders = [directory / name for name in ("samples", "kept") if (directory / name).is_dir()]
    files = [each for name in ("passing", "failing", "rollouts") for each in sorted(directory.glob(f"{name}.jsonl*"))]
    if len(files) > 1:
        raise InputError(f"{directory} holds {' and '.join(each.name for each in files)}: name those that you mean")
    if folders or files:
        return folders or files
    for name, remedy in _OTHER_OUTPUTS.items():
        if any((directory / name).glob("*.jsonl.zst")) or any((directory / name).glob("*/task.json")):
            raise InputError(f"{directory} holds no texts but {name}: {remedy} first")
    return [directory]


def _inputs_below(directory: Path, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Path]:
    """Links of a user's own folder are followed, but not in a circle."""
    if directory.is_file():
        yield directory
        return
    facts = directory.stat()
    here = (facts.st_dev, facts.st_ino)
    if here in above:
        return
    for child in sorted(directory.iterdir()):
        if is_saved_dataset(child) or (child.is_file() and child.name.endswith(_SUFFIXES)):
            yield child
        elif child.is_dir():
            yield from _inputs_below(child, above | {here})


def read(paths: list[Path], columns: Columns, cursor: ReadCursor | None = None) -> Iterator[Chunk]:
    """Chunks of all inputs, from a place (`after` of a chunk) on."""
    cursor = cursor or ReadCursor()
    with TableReader() as tables:
        for number in range(cursor.input, len(paths)):
            start = cursor if number == cursor.input else ReadCursor(number)
            if _is_table(paths[number]):
                yield from tables.chunks(paths[number], columns, start)
            else:
                yield from _read_text(paths[number], start)


def _read_text(path: Path, cursor: ReadCursor) -> Iterator[Chunk]:
    if is_array(path):
        yield from read_array(path, cursor)
    else:
        yield from _read_lines(path, cursor)


def _is_table(path: Path) -> bool:
    return path.is_dir() or path.suffix == ".parquet"


def check_columns(paths: list[Path], columns: Columns) -> None:
    """Raise InputError for a table without the columns: before hours of work, not after them."""
    with TableReader() as tables:
        for path in filter(_is_table, paths):
            columns.of_table(path, tables.names(path))


def _read_lines(path: Path, cursor: ReadCursor) -> Iterator[Chunk]:
    pending: list[bytes] = []  # of a line longer than a block
    held = 0
    for block in read_chunks(path, CHUNK_BYTES, cursor.offset):
        cut = block.rfind(b"\n") + 1
        if not cut:
            held += len(block)
            pending = [*pending, block] if held <= MAX_RECORD_BYTES else []
            continue
        if held > MAX_RECORD_BYTES:
            end = block.index(b"\n") + 1
            yield _too_long(path, cursor, held + end)
            cursor, block, cut, pending = _after(cursor, held + end, 1), block[end:], cut - end, []
        if cut:
            chunk = _lines_from(path, cursor, b"".join([*pending, memoryview(block)[:cut]]))
            yield chunk
            cursor = chunk.after
        pending, held = [block[cut:]], len(block) - cut
    if held > MAX_RECORD_BYTES:
        yield _too_long(path, cursor, held)
    elif rest := b"".join(pending):
        yield _lines_from(path, cursor, rest)


def _too_long(path: Path, cursor: ReadCursor, size: int) -> Chunk:
    return too_long(path, cursor.record, _after(cursor, size, 1))


def _lines_from(path: Path, cursor: ReadCursor, lines: bytes) -> Chunk:
    return Chunk(path, cursor.record, _after(cursor, len(lines), lines.count(b"\n")), lines=lines)


def _after(cursor: ReadCursor, size: int, records: int) -> ReadCursor:
    return ReadCursor(cursor.input, cursor.offset + size, cursor.record + records)
