"""JSON Lines of a run (metrics, evaluation, answers, starts): written a line at a time, and read back. Torch-free."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from data_prep import InputError
from data_prep.io.errors import first_mistake
from data_prep.io.files import part_of, publish, read_regular_file

_MOST_BYTES = 4 << 30  # a million steps of the longest lines

Line = TypeVar("Line", bound=BaseModel)


class JsonLines:
    """A line of JSON per report; those after `last_step` are dropped first."""

    def __init__(self, path: Path, last_step: int) -> None:
        lines = [(line, _parse(path, number, line)["step"]) for number, line in _whole_lines(path)]
        part = part_of(path)
        part.write_bytes(b"".join(line + b"\n" for line, step in lines if step <= last_step))
        publish(part, path)
        self._file = path.open("ab", buffering=0)

    def write(self, line: dict[str, Any]) -> None:
        """Append one line. Raises OSError where the disk took a part of it."""
        data = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        if self._file.write(data) < len(data):  # the disk took a part of it
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a file so far, each an object with the `step` it is about; none where there is no file.

    A last line that a killed run left unfinished is not counted. Raises InputError for another that is damaged.
    """
    return [_parse(path, number, line) for number, line in _whole_lines(path)]


def read_lines(path: Path, form: type[Line]) -> list[Line]:
    """The lines of a file as a model of their form. Raises InputError for a line of another form."""
    found = []
    for number, line in _whole_lines(path):
        _parse(path, number, line)
        try:
            found.append(form.model_validate_json(line, strict=True))
        except ValidationError as error:
            raise InputError(f"{path}, line {number}: {first_mistake(error)}; remove the line") from None
    return found


def _whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    if os.path.lexists(path):
        yield from enumerate(read_regular_file(path, _MOST_BYTES).split(b"\n")[:-1], 1)


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        held = orjson.loads(line)
    except orjson.JSONDecodeError:
        held = None
    if not isinstance(held, dict) or type(held.get("step")) is not int or held["step"] < 0:
        raise InputError(f"{path}, line {number}, is no JSON object with a step from 0 on: remove the line")
    return held
