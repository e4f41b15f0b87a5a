"""How a command ends: 0 done, 1 failed, 2 a user's mistake, 130 interrupted by Ctrl-C."""

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

from data_prep.io.errors import InputError, WorkFailed, is_full_disk, printable
from data_prep.io.extras import missing_package

INTERRUPTED = 130
_BEGINS_ANEW = "nothing was written; the same command begins anew"
_GOES_ON = "what is done so far is kept; the same command goes on from there"
_Given = ParamSpec("_Given")
_Returned = TypeVar("_Returned")

_WRONG_PATH = frozenset(
    {
        errno.ENOENT,
        errno.EEXIST,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENAMETOOLONG,
    }
)
_REMEDIES = {
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "allow more open files",
    errno.EIO: "see to the disk",
    errno.EPIPE: "leave its output open",
}


@contextmanager
def exit_on_mistake() -> Iterator[None]:
    """A user's mistake in the block is one sentence on stderr and exit code 2; a full disk one and exit code 1.

    Of many ranks that find the same mistake, the first one says it.
    """
    try:
        yield
    except InputError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {printable(error)}", file=sys.stderr)
        sys.exit(2)
    except (FloatingPointError, WorkFailed) as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        sys.exit(1)
    except ModuleNotFoundError as error:
        said = missing_package(error)
        if said is None:
            raise
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {said}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        _end_with(error)


class Interrupted(Exception):
    """Ctrl-C ended a command; the text says what is kept, and how to go on."""


def resumable(command: Callable[_Given, _Returned]) -> Callable[_Given, _Returned]:
    """Mark a command that goes on where it was: Ctrl-C says so."""

    @wraps(command)
    def run(*values: _Given.args, **options: _Given.kwargs) -> _Returned:
        try:
            return command(*values, **options)
        except KeyboardInterrupt:
            raise Interrupted(_GOES_ON) from None

    return run


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Ctrl-C in the block is one sentence on stderr, and exit code 130, as shells count it."""
    try:
        yield
    except Interrupted as end:
        said = str(end)
    except KeyboardInterrupt:
        said = _BEGINS_ANEW
    except SystemExit as end:
        if not isinstance(getattr(end.__context__, "__cause__", None), KeyboardInterrupt):  # which typer turned into it
            raise
        said = _BEGINS_ANEW
    else:
        return
    if os.environ.get("RANK", "0") == "0":
        print(f"\ninterrupted: {said}", file=sys.stderr)
    sys.exit(INTERRUPTED)


def _end_with(error: OSError) -> None:
    """One sentence for what the system refused: 2 where another path helps, 1 where the same command may help later."""
    if error.strerror is None:
        raise error
    of = f"{printable(error.filename)}: " if error.filename is not None else ""
    if error.errno in _WRONG_PATH and of:
        print(f"error: {of}{error.strerror}", file=sys.stderr)
        sys.exit(2)
    remedy = "make room" if is_full_disk(error) else _REMEDIES.get(error.errno or 0, "see to it")
    print(f"error: {of}{error.strerror}: {remedy}, and start the same command again", file=sys.stderr)
    sys.exit(1)


def print_done(text: str) -> None:
    """Print what a finished command has to say. The work is done: a closed or full output does not undo it."""
    try:
        print(text, flush=True)
    except OSError as error:
        print(f"warning: the work is done, its summary could not be printed: {error.strerror}", file=sys.stderr)
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - else Python tries again at its end


def print_any_text() -> None:
    """Let a narrow encoding lose characters, and not the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
