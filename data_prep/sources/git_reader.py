"""A repository of our own through which a clone is read: it has the clone's objects and refs, and nothing else of it.

A clone is anybody's. Its configuration, attributes, grafts, replacements, index and work tree could each change what
git says of it, and a link in it could lead to another repository on this disk. So none of that is there to be read.
"""

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from data_prep.io.errors import InputError, printable
from data_prep.io.files import read_regular_file
from data_prep.sources.git_environment import environment_without_git

_EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
_MOST_BYTES = 64 << 20  # of a file that names refs
_MOST_CONFIG_BYTES = 1 << 20

# What is left to be set by the system and by the user is not read either; nothing is ever fetched.
_ENVIRONMENT = {
    "GIT_ALLOW_PROTOCOL": "",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_ATTR_SOURCE": _EMPTY_TREE,  # newer versions of git take attributes from the newest commit otherwise
    "LC_ALL": "C",
}
_SETTINGS = {
    "core.hooksPath": os.devnull,
    "core.commitGraph": "false",  # which lies among the clone's objects, and says what it likes
    "core.multiPackIndex": "false",
    "log.mailmap": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
}
GIT = ("git", "--no-replace-objects", *(word for item in _SETTINGS.items() for word in ("-c", "=".join(item))))


class GitReader:
    """`directory` is a bare repository that goes away with `close`; `refs` are the clone's, ref name -> object.

    `shared`: whether the clone may share another one's objects, as those do that this project makes. Raises InputError
    where `path` is no clone, or one whose files lead elsewhere.
    """

    def __init__(self, path: Path, shared: bool = False) -> None:
        self._path = path
        self._clone = _git_directory(path)
        _refuse_links(self._clone, shared)
        self.environment = git_reader_environment()
        self._folder = TemporaryDirectory(prefix="davinci-reader-")
        self.directory = Path(self._folder.name)
        try:
            self._make()
        except FileNotFoundError:
            raise InputError("the git command is not installed: install git") from None

    def _make(self) -> None:
        kind = self._setting("extensions.objectformat") or "sha1"
        made = self.run("init", "-q", "--bare", "--template=", f"--object-format={kind}", str(self.directory))
        if made.returncode:
            raise InputError(
                f"{self._path} has objects of the kind {printable(kind, 30)!r}, which git does not know here"
            )
        (self.directory / "objects" / "info").mkdir(exist_ok=True)
        alternates = self.directory / "objects" / "info" / "alternates"
        alternates.write_bytes(os.fsencode((self._clone / "objects").resolve()) + b"\n")
        (self.directory / "HEAD").write_bytes(read_regular_file(self._clone / "HEAD", _MOST_CONFIG_BYTES))
        if (self._clone / "packed-refs").exists():
            packed = read_regular_file(self._clone / "packed-refs", _MOST_BYTES)
            (self.directory / "packed-refs").write_bytes(packed)
        shutil.rmtree(self.directory / "refs")
        shutil.copytree(self._clone / "refs", self.directory / "refs", ignore=_odd_files)
        listed = self.git("for-each-ref", "--format=%(objectname) %(refname)").stdout.decode(errors="replace")
        self.refs = {name: found for found, _, name in (line.partition(" ") for line in listed.split("\n")[:-1])}
        self._keep_what_is_there()

    def _keep_what_is_there(self) -> None:
        """Refs whose objects the clone lacks would end every reading of all."""
        asked = "".join(f"{each}\n" for each in dict.fromkeys(self.refs.values())).encode()
        answers = self.git("cat-file", "--batch-check=%(objectname)", stdin=asked).stdout.decode().splitlines()
        there = {answer for answer in answers if not answer.endswith(" missing")}
        lines = sorted((name, found) for name, found in self.refs.items() if found in there)
        shutil.rmtree(self.directory / "refs")
        (self.directory / "refs").mkdir()
        (self.directory / "packed-refs").write_text(
            "# pack-refs with: sorted \n" + "".join(f"{found} {name}\n" for name, found in lines), errors="replace"
        )

    @property
    def is_shallow(self) -> bool:
        """Whether the clone's history ends before its beginning."""
        return (self._clone / "shallow").exists()

    def remote(self) -> str:
        """The address that the clone was made from; empty where it does not say."""
        return self._setting("remote.origin.url") or ""

    def _setting(self, name: str) -> str | None:
        config = self._clone / "config"
        if not config.exists():
            return None
        given = read_regular_file(config, _MOST_CONFIG_BYTES)
        found = self.run("config", "--file", "-", "--no-includes", "--get", name, stdin=given)
        return found.stdout.decode(errors="replace").strip() if found.returncode == 0 else None

    def git(self, *arguments: str, stdin: bytes | None = None) -> "subprocess.CompletedProcess[bytes]":
        """Run git in the reader."""
        return self.run("-C", str(self.directory), *arguments, stdin=stdin)

    def run(self, *arguments: str, stdin: bytes | None = None) -> "subprocess.CompletedProcess[bytes]":
        """Run git without any setting but ours."""
        return subprocess.run(
            [*GIT, *arguments], input=stdin or b"", capture_output=True, env=self.environment, check=False
        )

    def close(self) -> None:
        """Remove it."""
        self._folder.cleanup()


def git_reader_environment() -> dict[str, str]:
    """The environment for git on what others made: no setting but ours, nothing is fetched."""
    return {**environment_without_git(), **_ENVIRONMENT}


def _git_directory(path: Path) -> Path:
    if not path.is_dir():
        raise InputError(f"{path} is no directory: give the path of a git clone")
    inside = path / ".git"
    if inside.is_symlink() or inside.is_file():
        raise InputError(f"{inside} leads to another directory: give the path of the clone itself")
    found = inside if inside.is_dir() else path
    if not all((found / name).exists() for name in ("HEAD", "objects", "refs")):
        raise InputError(f"{path} is not a git repository: give the path of a clone")
    return found


def _refuse_links(clone: Path, shared: bool) -> None:
    """Raise InputError for what makes git read another directory's files as this clone's."""
    if (clone / "commondir").exists():
        raise InputError(f"{clone} is a work tree of another clone: give the path of that one")
    alternates = clone / "objects" / "info" / "alternates"
    if alternates.exists() and not shared:
        raise InputError(
            f"{alternates} names another directory of objects: run git repack -a -d, remove that file, and try again"
        )
    for at in _read_of(clone):
        if at.is_symlink():
            raise InputError(f"{at} is a link, which a clone has no need of: it was refused")


def _read_of(clone: Path) -> Iterator[Path]:
    """All of a clone that is read, here or by git."""
    yield from (clone / name for name in ("HEAD", "config", "packed-refs", "objects", "refs"))
    for top in ("objects", "refs"):
        for folder, folders, files in os.walk(clone / top):
            yield from (Path(folder, name) for name in (*folders, *files))


def _odd_files(folder: str, names: list[str]) -> list[str]:
    """What is no ref: links and devices, and files that are too long for one."""
    odd = []
    for name in names:
        facts = Path(folder, name).lstat()
        if not stat.S_ISDIR(facts.st_mode) and not (
            stat.S_ISREG(facts.st_mode) and facts.st_size <= _MOST_CONFIG_BYTES
        ):
            odd.append(name)
    return odd
