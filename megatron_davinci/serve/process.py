"""A server as a process of ours: started, watched, ended. Torch-free."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from data_prep import WorkFailed
from data_prep.io.errors import printable

_MOST_BYTES = 1 << 20
_ERROR = re.compile(r"(?<=[ \]])\w*(?:Error|Exception): .+|^\w*(?:Error|Exception): .+")
_PACKAGE = Path(__file__).parents[1]


class ServerProcess:
    """A server under a supervisor; `log` has what it says. It ends with `close`, and with this process."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        reading, self._lifeline = os.pipe()
        supervisor = [sys.executable, "-I", str(_PACKAGE / "serve" / "supervisor.py"), str(reading)]
        with log.open("ab") as output:
            self._log_start = output.tell()
            self._process = subprocess.Popen(
                [*supervisor, *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[reading],
                start_new_session=True,
            )
        os.close(reading)

    @property
    def pid(self) -> int:
        """Process id of the supervisor."""
        return self._process.pid

    def has_ended(self) -> bool:
        """Whether the server runs no more."""
        return self._process.poll() is not None

    def wait_until(self, is_ready: Callable[[], bool], timeout: float) -> None:
        """Wait for the server to be ready. Raises WorkFailed, with the reason, where it ends or takes too long."""
        deadline = time.monotonic() + timeout
        while not is_ready():
            if self.has_ended():
                raise WorkFailed(f"vLLM's server ended while it started: {self.last_error()}; all of it: {self.log}")
            if time.monotonic() > deadline:
                raise WorkFailed(
                    f"vLLM's server is not ready after {timeout:g} s (objective.rollouts.timeout): "
                    f"{self.last_error()}; all of it: {self.log}"
                )
            time.sleep(0.25)

    def last_error(self) -> str:
        """The first error that the log names, since what follows are its consequences; else its last line."""
        with self.log.open("rb") as file:
            length = self.log.stat().st_size
            file.seek(max(self._log_start, length - _MOST_BYTES))
            text = file.read(_MOST_BYTES).decode(errors="replace")
        lines = text.splitlines()
        named = [found.group() for line in lines if " WARNING " not in line and (found := _ERROR.search(line))]
        lines = named[:1] or lines
        return printable(next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing"), 400)

    def close(self) -> None:
        """End the server, and wait for it."""
        with suppress(OSError):
            os.close(self._lifeline)
        self._process.wait()


def worker_modules() -> Path:
    """A temporary directory in which this package can be imported, and nothing else of its environment."""
    directory = Path(tempfile.mkdtemp(prefix="davinci-worker-"))
    (directory / _PACKAGE.name).symlink_to(_PACKAGE)
    return directory


def remove_modules(directory: Path) -> None:
    """Remove what `worker_modules` made."""
    shutil.rmtree(directory, ignore_errors=True)
