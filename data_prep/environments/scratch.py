"""Names of directories for sessions, below a directory of this process; what killed processes left is removed."""

import itertools
import os
import socket
from contextlib import suppress
from pathlib import Path

from data_prep.environments.sandbox.session import remove_tree


class ScratchNames:
    """Call it for the name of a directory that is not there. Close it when all sessions are closed."""

    def __init__(self, folder: Path) -> None:
        self._root = folder.absolute() / ".sessions"
        host = socket.gethostname()  # others may be at work in the same folder
        self._own = self._root / f"{host}.{os.getpid()}"
        self._numbers = itertools.count()
        self._make_root()
        for left in self._root.iterdir():
            name, _, number = left.name.rpartition(".")
            if name == host and number.isdigit() and not Path("/proc", number).exists():
                remove_tree(left)

    def _make_root(self) -> None:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)  # what strangers write there may be setuid

    def __call__(self) -> Path:
        self._make_root()  # another process may have removed it, empty
        self._own.mkdir(exist_ok=True)
        return self._own / f"{next(self._numbers)}"

    def close(self) -> None:
        """Remove the directory of this process."""
        remove_tree(self._own)
        with suppress(OSError):  # others are at work
            self._root.rmdir()
