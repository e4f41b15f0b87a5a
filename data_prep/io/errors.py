"""The exceptions that the command line makes a sentence of."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What damaged values lead Python to raise where a well-formed one was taken for granted.
DAMAGE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, MemoryError, EOFError)


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


def escaped(text: str) -> str:
    """Text of others as a terminal may have it, line by line."""
    return "".join(each if each.isprintable() or each in "\n\t" else ascii(each)[1:-1] for each in text)


@contextmanager
def refused_if_damaged(path: Path, remedy: str = "make or fetch it again") -> Iterator[None]:
    """Around a reader of what anybody wrote: whatever its bytes lead Python to raise is one sentence with its name."""
    try:
        yield
    except DAMAGE as error:
        raise InputError(f"{path} is damaged, or nothing of this kind ({describe(error)}): {remedy}") from None


def describe(error: BaseException) -> str:
    """What an exception of a library says, with its kind, short."""
    return printable(f"{type(error).__name__}: {error}", 300)


def first_mistake(error: Any) -> str:
    """What a pydantic ValidationError says first, with the place: "responses.0.answer: Field required"."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or "the whole"
    return f"{where}: {first['msg']}"
