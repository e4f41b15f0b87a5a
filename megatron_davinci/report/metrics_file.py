"""RUN/metrics.jsonl and RUN/evaluation.jsonl: written a line at a time, and read back. Torch-free."""

import errno
import os
from pathlib import Path
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from data_prep import InputError
from data_prep.io.files import part_of

Line = TypeVar("Line", bound=BaseModel)


class JsonLines:
    """A line of JSON per report; those after `last_step` are dropped first."""

    def __init__(self, path: Path, last_step: int) -> None:
        kept = [line for line in read_metrics(path) if line["step"] <= last_step]
        part = part_of(path)
        part.write_bytes(b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in kept))
        part.replace(path)
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
    """The steps reported so far; a last line that a killed run left unfinished is not counted."""
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    try:
        return [orjson.loads(line) for line in lines]
    except orjson.JSONDecodeError:
        raise InputError(f"{path} has a damaged line: remove it, and start again") from None


def read_lines(path: Path, line: type[Line]) -> list[Line]:
    """The lines of another such file. Raises InputError for one that is of another form."""
    found = []
    for number, each in enumerate(read_metrics(path), 1):
        try:
            found.append(line.model_validate(each))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the whole"
            raise InputError(f"{path}, line {number}: {where}: {first['msg']}; remove the line") from None
    return found
