"""A .json file that holds one array of records, an item in memory at a time."""

import codecs
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.io.errors import InputError
from data_prep.io.files import read_chunks
from data_prep.tokenize.chunk import CHUNK_BYTES, MAX_RECORD_BYTES, Chunk, ReadCursor

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_ARRAYS = (".json", ".json.gz", ".json.zst")
_BRACKET = b"["
_JSON = json.JSONDecoder()
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
_UNREADABLE = object()


def is_array(path: Path) -> bool:
    """Whether a file holds one JSON array of records rather than lines."""
    if not path.name.endswith(_ARRAYS):
        return False
    for block in read_chunks(path, CHUNK_BYTES):
        if begun := block.removeprefix(BYTE_ORDER_MARK).lstrip():
            return begun.startswith(_BRACKET)
    return False


def read_array(path: Path, cursor: ReadCursor) -> Iterator[Chunk]:
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
    if record is _UNREADABLE:
        return b"(nested too deeply, or a number too long)"  # a broken record
    try:
        return json.dumps(record).encode()
    except RecursionError:
        return b"(nested too deeply)"


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
                raise json.JSONDecodeError("a number may go on", "", 0)
        except (RecursionError, ValueError) as error:
            over = None if isinstance(error, json.JSONDecodeError) else _end_of_item(text, at)
            if over is not None:  # it is whole, and no parser takes it
                yield _UNREADABLE
                at = over
                continue
            if ended:
                raise InputError(f"{path} is no whole JSON array of records: {error}") from None
            if len(text) - at > MAX_RECORD_BYTES:
                raise InputError(
                    f"{path} has a record of more than {MAX_RECORD_BYTES >> 20} MiB: leave it out, or give JSON Lines"
                ) from None
            count = 1 + (len(text) - at) // CHUNK_BYTES  # twice as much each time: a long record is not parsed for ever
            more = "".join(decoder.decode(block) for block in itertools.islice(blocks, count))
            text, at, ended = text[at:] + more, 0, not more
            continue
        yield item
        at = end


def _end_of_item(text: str, at: int) -> int | None:
    """Where an object or a list ends that begins at `at`, by its brackets; None where it does not end in the text."""
    depth = 0
    for match in _BRACKETS.finditer(text, at):
        if match[0] in "[{":
            depth += 1
        elif match[0] in "]}":
            depth -= 1
        if depth == 0:
            return match.end()
    return None


def _skip(text: str, at: int, characters: str) -> int:
    while at < len(text) and text[at] in characters:
        at += 1
    return at


def _records_from(path: Path, cursor: ReadCursor, lines: list[bytes]) -> Chunk:
    after = ReadCursor(cursor.input, cursor.offset + len(lines), cursor.record + len(lines))
    return Chunk(path, cursor.record, after, lines=b"\n".join(lines))
