"""A run's directory has one writer: two would prune each other's checkpoints, and cut off each other's metrics."""

import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_prep import InputError
from data_prep.io.files import take_lock
from megatron_davinci.core.groups import is_main_rank, sync_errors

LOCK_FILE = "run.lock"
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # file systems that know none


@contextmanager
def one_writer(directory: Path) -> Iterator[None]:
    """Hold the lock of a run's directory. All ranks enter; on each, InputError where another run holds it.

    Directories that are made for it go again, where the run leaves nothing in them.
    """
    lock, made = None, []
    with sync_errors():
        if is_main_rank():
            made = [each for each in (directory, *directory.parents) if not each.exists()]
            lock = _take(directory / LOCK_FILE)
    try:
        yield
    finally:
        if lock is not None:
            with suppress(FileNotFoundError):
                (directory / LOCK_FILE).unlink()
            os.close(lock)
        with suppress(OSError):  # the first one that holds something
            for each in made:
                each.rmdir()


def _take(path: Path) -> int | None:
    """The lock's descriptor; None, and a word, where the file system knows no locks.

    The lock is the process's own (fcntl's): a child that writes a checkpoint cannot keep it when this rank is killed.
    """
    holder = path.read_text(errors="replace").strip() if path.is_file() else ""
    busy = (
        f"another run is writing to {path.parent} ({holder or 'it has just begun'}): wait for it to end, or name "
        "another checkpoint.dir"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = take_lock(path, fcntl.lockf, busy)
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise InputError(f"{path} cannot be written ({error.strerror}): name another checkpoint.dir") from None
        print(f"{path.parent} is on a file system without locks: see that one run writes there", file=sys.stderr)
        return None
    with suppress(OSError):  # on a full disk the lock holds all the same
        os.truncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return lock
