"""How a command ends: 0 done, 1 failed, 2 a user's mistake."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from data_prep.io.errors import InputError, WorkFailed, is_full_disk, printable


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
    except (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno == errno.EROFS:
            print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
            sys.exit(2)
        if not is_full_disk(error):
            raise
        print(f"error: {error.strerror}: make room, and start the same command again", file=sys.stderr)
        sys.exit(1)
