"""The code of a GitHub repository by git: history without contents, then just the contents that are needed.

The clone knows its server; what reads it is a second repository that shares its objects and knows no server, so that
nothing is fetched by accident, one file at a time.
"""

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from data_prep.sources.git_environment import environment_without_git

_REFS_PER_FETCH = 2000
_SETTINGS = {
    "core.hooksPath": "/dev/null",
    "maintenance.auto": "false",
    "gc.auto": "0",
    "http.followRedirects": "false",  # a server may not send git to another host
    "transfer.bundleURI": "false",
}
_WITH_SETTINGS = tuple(word for item in _SETTINGS.items() for word in ("-c", "=".join(item)))
_PULL_HEAD = re.compile(r"[0-9a-f]+\trefs/pull/([1-9][0-9]{0,17})/head")


_REDIRECTED = re.compile(r"returned error: 30[1-8]")


class RepositoryMoved(Exception):
    """The address leads elsewhere, where git is not sent."""


class CannotClone(Exception):
    """git cannot have this repository; the message is what it said last."""


class RemoteClone:
    """A clone of an address below `folder`, made when it is not there yet. Raises CannotClone, or Moved.

    git follows the address by its own protocol alone, and to its own host alone.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self._clone = folder / "clone.git"
        self.reader = folder / "reader.git"
        self._environment = {
            **environment_without_git(),
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ALLOW_PROTOCOL": urlsplit(url).scheme,
            "LC_ALL": "C",
        }
        if not self._clone.is_dir():
            part = folder / "clone.part"
            shutil.rmtree(part, ignore_errors=True)
            part.parent.mkdir(parents=True, exist_ok=True)
            self._git("clone", "-q", "--bare", "--filter=blob:none", "--", url, str(part))
            part.replace(self._clone)

    def fetch_pull_heads(self, numbers: Iterable[int]) -> None:
        """Bring refs/pull/N/head of those pull requests that still have one, and let the reader see them."""
        listed = self._git("-C", str(self._clone), "ls-remote", "origin", "refs/pull/*/head").splitlines()
        there = {int(match[1]) for match in map(_PULL_HEAD.fullmatch, listed) if match}
        wanted = [number for number in numbers if number in there]
        for at in range(0, len(wanted), _REFS_PER_FETCH):
            specs = [f"+refs/pull/{n}/head:refs/pull/{n}/head" for n in wanted[at : at + _REFS_PER_FETCH]]
            self._fetch(specs, "--filter=blob:none")
        self._make_reader()

    def fetch_contents(self, blobs: set[str]) -> None:
        """Bring file contents by id; those that are there already are not asked for."""
        if missing := sorted(blobs - self._present(blobs)):
            self._fetch(missing, "--filter=blob:none", "--no-write-fetch-head")

    def _present(self, blobs: set[str]) -> set[str]:
        question = "".join(f"{blob}\n" for blob in blobs)
        answer = self._git("-C", str(self.reader), "cat-file", "--batch-check=%(objectname)", stdin=question)
        return {line for line in answer.splitlines() if not line.endswith(" missing")}

    def _fetch(self, specs: list[str], *options: str) -> None:
        lines = "".join(f"{spec}\n" for spec in specs)
        self._git("-C", str(self._clone), "fetch", "-q", "--no-tags", *options, "--stdin", "origin", stdin=lines)

    def _make_reader(self) -> None:
        part = self.reader.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        self._git("init", "-q", "--bare", str(part))
        objects = (self._clone / "objects").resolve()
        (part / "objects" / "info" / "alternates").write_text(f"{objects}\n")
        refs = self._git("-C", str(self._clone), "for-each-ref", "--format=%(objectname) %(refname)")
        (part / "packed-refs").write_text("# pack-refs with: sorted \n" + refs)
        shutil.copy(self._clone / "HEAD", part / "HEAD")
        shutil.rmtree(self.reader, ignore_errors=True)
        part.replace(self.reader)

    def _git(self, *arguments: str, stdin: str = "") -> str:
        command = ["git", *_WITH_SETTINGS, *arguments]
        try:
            done = subprocess.run(
                command, input=stdin.encode(), capture_output=True, env=self._environment, check=False
            )
        except FileNotFoundError:
            raise CannotClone("git is not installed") from None
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            if any(map(_REDIRECTED.search, said)):
                raise RepositoryMoved
            raise CannotClone(said[-1] if said else f"git {arguments[0]} failed")
        return done.stdout.decode(errors="replace")
