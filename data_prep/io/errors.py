"""The exceptions that the command line makes a sentence of."""

import errno
from typing import Any


class InputError(Exception):
    """The input is wrong: one sentence with the value, the rule and the remedy. The command line exits with 2."""


class WorkFailed(RuntimeError):
    """The input is right, and the work could not be done: one sentence. The command line exits with 1."""


class NoDocuments(InputError):
    """The input holds nothing that can be used; `notes` count by reason what it held."""

    def __init__(self, message: str, notes: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.notes = notes or {}


def is_full_disk(error: BaseException) -> bool:
    """Whether the system refused to write for want of room."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def printable(text: object, limit: int = 2000) -> str:
    """A message as a terminal may have it: names in it are anybody's, and may hold escape sequences, or megabytes."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in str(text)[:limit])


def first_mistake(error: Any) -> str:
    """What a pydantic ValidationError says first, with the place: "responses.0.answer: Field required"."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or "the whole"
    return f"{where}: {first['msg']}"
