"""How a command ends: 0 done, 1 failed, 2 a user's mistake."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from data_prep.io.errors import InputError, WorkFailed, is_full_disk, printable

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
    except OSError as error:
        _end_with(error)


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
