"""The records of a chunk, each with its number; what cannot be read is a broken one."""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import orjson

from data_prep.tokenize.chunk import BrokenRecord, Chunk
from data_prep.tokenize.json_array import BYTE_ORDER_MARK
from data_prep.tokenize.tables import rows_of

_BRACE = ord("{")


def records_of(chunk: Chunk) -> Iterator[tuple[int, dict[str, Any] | BrokenRecord]]:
    """Each record with its number; for a line that is no JSON object, what is wrong with it. Empty lines are none."""
    if chunk.broken is not None:
        yield chunk.first, BrokenRecord(chunk.broken)
        return
    if chunk.rows is not None:
        yield from enumerate(rows_of(chunk.rows), chunk.first)
        return
    assert chunk.lines is not None
    lines, start = memoryview(chunk.lines), 0  # nothing is copied on the way to the parser
    for number in itertools.count(chunk.first):
        end = chunk.lines.find(b"\n", start)
        line = lines[start:] if end < 0 else lines[start:end]
        if line and line[0] != _BRACE:
            line = memoryview(line.tobytes().removeprefix(BYTE_ORDER_MARK if number == 1 else b"").strip())
        if line:
            yield number, _parse(line)
        if end < 0:
            return
        start = end + 1


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
