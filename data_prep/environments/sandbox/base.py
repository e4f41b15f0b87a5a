"""The protocol of a sandbox: open an image, run commands in it one after the other, see what they changed.

Each command is alone: whatever it started ends with it. What it wrote below /testbed and /tmp is there for the next
one. Nothing that a command does is seen by the host but its output and the changes that are asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

TESTBED = "/testbed"  # where a checkout lies in every sandbox
GIT_DIRECTORY = "/base.git"  # the checkout's own, read-only, for `changes`
USER_ID = 1000  # in the sandbox

Network = Literal["none", "black hole", "host"]
"""none: every address is refused at once. black hole: packets leave and no answer comes, as behind a firewall.
host: the network of this machine, for installing alone."""

_GIB = 1 << 30


@dataclass(frozen=True)
class Limits:
    """What a command may use. `memory_bytes` and `processes` are of all its processes together, `disk_bytes` of all
    that is written in a session; of output both ends are kept."""

    seconds: float = 60
    memory_bytes: int = 2 * _GIB
    processes: int = 256
    file_bytes: int = _GIB
    disk_bytes: int = 4 * _GIB
    output_bytes: int = 1 << 20


@dataclass(frozen=True)
class Mount:
    """A file or a directory of the host, and where it lies in the sandbox."""

    source: Path
    target: str
    writable: bool = False


@dataclass(frozen=True)
class Image:
    """What a session begins with: `tree` (a git checkout) as /testbed, never written, and more mounts.

    The root is made of this machine's /usr, or is the container image `container`. `path` comes first in PATH.
    """

    tree: Path
    mounts: tuple[Mount, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    path: tuple[str, ...] = ()
    container: str | None = None


@dataclass(frozen=True)
class Result:
    """What became of a command. `killed` names the limit that ended it: time, memory or disk."""

    returncode: int
    output: str
    seconds: float
    truncated: bool = False
    killed: Literal["time", "memory", "disk"] | None = None

    @property
    def timed_out(self) -> bool:
        """Whether it ran longer than it may."""
        return self.killed == "time"


class Session(Protocol):
    """A sandbox that is open."""

    def run(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str] | None = None,
        seconds: float | None = None,
        stdin: bytes = b"",
    ) -> Result:
        """Run a command in /testbed; `seconds` in place of the limit's."""

    def put(self, contents: Mapping[str, bytes]) -> None:
        """Write files, by their paths in the sandbox. Raises SandboxFailed where that cannot be."""

    def get(self, path: str) -> bytes | None:
        """The bytes of a file in the sandbox, None where it is absent."""

    def changes(self) -> bytes:
        """The difference of /testbed to its commit, as a git patch. What its .gitignore names is left out."""

    def new_files(self) -> bytes:
        """A tar file of what is in /testbed and not in its commit, ignored or not, but for compiled Python."""

    def close(self) -> None:
        """Remove all that the session wrote."""


class Sandbox(Protocol):
    """A backend."""

    def open(self, image: Image, state: Path, limits: Limits, network: Network) -> Session:
        """Begin a session, whose writes go below the directory `state`, which must not be there."""

    def capabilities(self, directory: Path) -> dict[str, str]:
        """Name -> why it is missing, empty where it is there: overlay (asked of `directory`), memory limit, pids
        limit, network off, black hole."""


class SandboxFailed(RuntimeError):
    """The sandbox itself does not work: no fault of what was to run in it."""
