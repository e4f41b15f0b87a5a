"""What the sessions of all backends share: the work tree of a session, files in and out, the difference to its commit.

Nothing below is done on the host: git, tar and cp run in the sandbox, so that a link or a hook that a stranger has left
leads nowhere. The host reads one file, from a directory that no stranger's command ever sees.
"""

import io
import shutil
import subprocess
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from data_prep.environments.sandbox.base import (
    GIT_DIRECTORY,
    TESTBED,
    Image,
    Limits,
    Mount,
    Network,
    Result,
    SandboxFailed,
)
from data_prep.environments.sandbox.confined import run_confined
from data_prep.io.errors import InputError
from data_prep.io.files import read_regular_file

_EXCHANGE = "/exchange"
_MAX_EXCHANGED = 256 << 20
_EXCHANGE_SECONDS = 300.0  # whatever the limit of a command is: it is we who ask
_MODIFIED = 1_000_000_000  # seconds since 1970, of files that are written: zip takes none before 1980
_LEAST_FREE = 64 << 20  # below which a command's failure may be the disk's
_MAX_PATCH = 64 << 20
_DEFAULTS = {
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "TZ": "UTC",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "GIT_CONFIG_NOSYSTEM": "1",
    "PAGER": "cat",
    "GIT_PAGER": "cat",
    "NO_COLOR": "1",
    "COLUMNS": "80",
}
_SYSTEM_PATH = ("/usr/local/bin", "/usr/bin", "/bin")
_NEVER_RUN = ("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false")
_GIT = ("git", *_NEVER_RUN, f"--git-dir={GIT_DIRECTORY}", f"--work-tree={TESTBED}")
_ASIDE = ".git-aside"
_DIFFERENCE = f"""
cp {GIT_DIRECTORY}/index {_EXCHANGE}/index && mkdir {_EXCHANGE}/objects || exit 1
find {TESTBED} -mindepth 2 -name .git -prune -execdir mv {{}} {_ASIDE} \\; # else git takes a repository for a link
{" ".join(_GIT)} add -A --ignore-errors -- {TESTBED} ':(exclude,glob)**/{_ASIDE}/**' # what cannot be read is left out
find {TESTBED} -mindepth 2 -name {_ASIDE} -prune -execdir mv {{}} .git \\;
{" ".join(_GIT)} diff --cached --binary --no-renames --full-index --no-ext-diff --no-textconv HEAD > {_EXCHANGE}/out
"""
_NEW_FILES = f"""
cp {GIT_DIRECTORY}/index {_EXCHANGE}/index && mkdir {_EXCHANGE}/objects && cd {TESTBED} &&
{" ".join(_GIT)} ls-files --others -z > {_EXCHANGE}/all || exit 1
grep -zvE '(^|/)__pycache__/|\\.pyc$|(^|/)\\.git(/|$)' {_EXCHANGE}/all > {_EXCHANGE}/names
tar -c --sort=name --mtime=@{_MODIFIED} --owner=0 --group=0 --numeric-owner --null --verbatim-files-from \\
    -T {_EXCHANGE}/names -f {_EXCHANGE}/out
"""
_GIT_ENVIRONMENT = {
    "GIT_INDEX_FILE": f"{_EXCHANGE}/index",
    "GIT_OBJECT_DIRECTORY": f"{_EXCHANGE}/objects",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES": f"{GIT_DIRECTORY}/objects",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "HOME": _EXCHANGE,
}


class ConfinedSession(ABC):
    """A session whose commands are one program each, made of words by `words`."""

    def __init__(self, image: Image, state: Path, limits: Limits, network: Network) -> None:
        self.image, self.state, self.limits, self.network = image, state.absolute(), limits, network
        self.state.mkdir(parents=True)
        self.temporary.mkdir()

    @property
    def temporary(self) -> Path:
        """What /tmp is in the sandbox."""
        return self.state / "tmp"

    @abstractmethod
    def words(
        self, argv: Sequence[str], environment: Mapping[str, str], mounts: Iterable[Mount], with_ours: bool = False
    ) -> list[str]:
        """The program that runs a command in the sandbox; `with_ours`: on this machine's programs, in any case."""

    def run(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str] | None = None,
        seconds: float | None = None,
        stdin: bytes = b"",
    ) -> Result:
        """See `Session`."""
        limits = self.limits if seconds is None else replace(self.limits, seconds=seconds)
        return self._run(argv, environment or {}, (), limits, stdin)

    def _run(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        mounts: Sequence[Mount],
        limits: Limits,
        stdin: bytes = b"",
        with_ours: bool = False,
    ) -> Result:
        found = {**_DEFAULTS, **self.image.environment, "PATH": ":".join((*self.image.path, *_SYSTEM_PATH))}
        words = self.words(argv, {**found, **environment}, (*self.image.mounts, *mounts), with_ours)
        result = run_confined(words, limits, self.state, stdin)
        if result.returncode and (free := shutil.disk_usage(self.state).free) < _LEAST_FREE:
            raise SandboxFailed(f"the disk of {self.state.parent} is full ({free >> 20} MiB are free): make room")
        return result

    def put(self, contents: Mapping[str, bytes]) -> None:
        """See `Session`."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for path, content in contents.items():
                entry = tarfile.TarInfo(path.lstrip("/"))
                entry.size, entry.mtime = len(content), _MODIFIED
                archive.addfile(entry, io.BytesIO(content))
        command = ["tar", "-x", "--no-same-owner", "-C", "/"]
        done = self._run(command, {}, (), self.limits, packed.getvalue(), with_ours=True)
        if done.returncode:
            raise SandboxFailed(f"files could not be written in the sandbox: {done.output[-300:].strip()}")

    def get(self, path: str) -> bytes | None:
        """See `Session`."""
        return self._exported(f'test -f "$0" && cp -L -- "$0" {_EXCHANGE}/out', path, {}, _MAX_EXCHANGED)

    def changes(self) -> bytes:
        """See `Session`."""
        return self._asked_of_git(_DIFFERENCE, _MAX_PATCH)

    def new_files(self) -> bytes:
        """See `Session`."""
        return self._asked_of_git(_NEW_FILES, _MAX_EXCHANGED)

    def _asked_of_git(self, script: str, limit: int) -> bytes:
        found = self._exported(f"{{ {script} }} > {_EXCHANGE}/log 2>&1", "sh", _GIT_ENVIRONMENT, limit)
        if found is None:
            raise SandboxFailed("git cannot tell what changed in the sandbox")
        return found

    def _exported(self, script: str, argument: str, environment: Mapping[str, str], limit: int) -> bytes | None:
        """The file /exchange/out that a script writes, None where it fails. Raises SandboxFailed above a limit."""
        exchange = self.state / "exchange"
        exchange.mkdir()
        mounts = (
            Mount(exchange, _EXCHANGE, writable=True),
            Mount(self.image.tree / ".git", GIT_DIRECTORY),
        )
        try:
            argv = ["/bin/sh", "-c", script, argument]
            limits = replace(self.limits, seconds=max(self.limits.seconds, _EXCHANGE_SECONDS))
            result = self._run(argv, environment, mounts, limits, with_ours=True)
            return None if result.returncode else read_regular_file(exchange / "out", limit)
        except InputError as error:
            raise SandboxFailed(f"a file of the sandbox cannot be taken: {error}") from None
        finally:
            remove_tree(exchange)

    def close(self) -> None:
        """See `Session`."""
        remove_tree(self.state)


def copied(tree: Path, target: Path) -> Path:
    """A tree as a directory of its own, by reference where the file system can."""
    target.mkdir()
    subprocess.run(["cp", "-a", "--reflink=auto", f"{tree}/.", str(target)], check=True)
    return target


def remove_tree(path: Path) -> None:
    """Remove a directory in which others have taken permissions away."""
    if not path.exists():
        return
    subprocess.run(["chmod", "-R", "u+rwX", str(path)], check=False, capture_output=True)
    subprocess.run(["rm", "-rf", "--", str(path)], check=False, capture_output=True)  # trees may be of any depth
    if path.exists():
        raise SandboxFailed(f"{path} cannot be removed: remove it by hand")


def etc_file(name: str) -> Path:
    """A file for /etc: a sandbox shows none of this machine's users."""
    return Path(str(files("data_prep.environments.sandbox").joinpath("etc", name)))
