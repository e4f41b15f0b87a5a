"""Names of directories for sessions, below a directory of this process; what killed processes left is removed."""

import itertools
import os
from contextlib import suppress
from pathlib import Path

from data_prep.environments.sandbox.session import remove_tree


class ScratchNames:
    """Call it for the name of a directory that is not there. Close it when all sessions are closed."""

    def __init__(self, folder: Path) -> None:
        self._root = folder.absolute() / ".sessions"
        self._own = self._root / str(os.getpid())
        self._numbers = itertools.count()
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)  # what strangers write there may be setuid
        for left in self._root.iterdir():
            if left.name.isdigit() and not Path("/proc", left.name).exists():
                remove_tree(left)

    def __call__(self) -> Path:
        self._own.mkdir(exist_ok=True)
        return self._own / f"{next(self._numbers)}"

    def close(self) -> None:
        """Remove the directory of this process."""
        remove_tree(self._own)
        with suppress(OSError):  # others are at work
            self._root.rmdir()
