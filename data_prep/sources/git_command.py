"""The git command, read-only, on a clone that is not trusted.

git itself and not a binding, because only git reads a partial (blobless) clone.
"""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from data_prep.errors import InputError
from data_prep.sources.git_environment import environment_without_git

# Nothing that the clone's own configuration names may run, and none of its settings may change an output.
_SETTINGS = {
    "core.fsmonitor": "false",
    "core.hooksPath": "/dev/null",
    "log.showSignature": "false",
    "color.ui": "false",
}
_SAFE = ("--no-replace-objects", *(word for item in _SETTINGS.items() for word in ("-c", "=".join(item))))
_NEVER_RUN = {"log": ("--no-ext-diff", "--no-textconv"), "diff": ("--no-ext-diff", "--no-textconv")}
_REMOTE_NAME = re.compile(r"^(?:(?!file)\w+://[^/]+/|[\w.@-]+:(?!//))(?:[^:]*/)?([^/:]+/[^/:]+?)(?:\.git)?/*$")
_MISSING = b"missing\n"


class GitClone:
    """One clone, bare or not. Raises InputError when `path` is none, or has no commit."""

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise InputError(f"{path} is no directory: give the path of a git clone")
        self._path = path
        # An empty list of protocols: a partial clone may not fetch what it lacks, whatever its configuration says.
        offline = {"GIT_ALLOW_PROTOCOL": "", "GIT_NO_LAZY_FETCH": "1", "GIT_TERMINAL_PROMPT": "0"}
        self._environment = {**environment_without_git(), **offline, "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"}
        try:
            top = self._ask("rev-parse", "--show-toplevel") or self._ask("rev-parse", "--absolute-git-dir")
        except FileNotFoundError:
            raise InputError("the git command is not installed: install git") from None
        if top is None or Path(top).resolve() != path.resolve():
            raise InputError(f"{path} is not a git repository: give the path of a clone")
        if self._ask("rev-parse", "--verify", "--quiet", "HEAD^{commit}") is None:
            raise InputError(f"{path} has no commits on its current branch: there is nothing to collect")
        self._cat_file: subprocess.Popen[bytes] | None = None

    def repository_name(self) -> str:
        """owner/name out of the remote's address, else the folder's name."""
        remote = self._ask("config", "--get", "remote.origin.url") or ""
        match = _REMOTE_NAME.match(remote)
        return match[1] if match else self._path.resolve().name.removesuffix(".git")

    def refs(self, pattern: str) -> dict[str, str]:
        """Ref name -> commit."""
        lines = self._ask("for-each-ref", "--format=%(refname) %(objectname)", pattern) or ""
        return dict(line.split(" ", 1) for line in lines.splitlines())

    def merge_base(self, one: str, other: str) -> str | None:
        """The best common ancestor of two commits."""
        return self._ask("merge-base", one, other)

    def patch_id(self, old: str, new: str) -> str | None:
        """git's identity of the patch between two commits, blind to where its hunks lie."""
        with self._start("diff", "--full-index", "--binary", old, new) as diff:
            command = [*self._command("patch-id"), "--stable"]
            found = subprocess.run(command, stdin=diff.stdout, capture_output=True, check=True, env=self._environment)
        return found.stdout.decode().partition(" ")[0] if diff.returncode == 0 else None

    def stream(self, *arguments: str) -> Iterator[str]:
        """NUL-separated fields of a command's output, as they come; bytes that are not UTF-8 become U+FFFD."""
        with self._start(*arguments) as process:
            assert process.stdout is not None
            rest = b""
            while block := process.stdout.read1(1 << 16):  # type: ignore[attr-defined]  # a buffered pipe has it
                *fields, rest = (rest + block).split(b"\0")
                yield from (field.decode(errors="replace") for field in fields)
            if rest:
                yield rest.decode(errors="replace")
            if process.wait() != 0:
                raise InputError(f"git {arguments[0]} failed in {self._path}: is the clone complete?")

    def blob(self, blob_id: str, max_bytes: int) -> bytes | None:
        """Contents of a blob, None above `max_bytes`."""
        if self._cat_file is None:
            self._cat_file = self._start("cat-file", "--batch-command")
        requests, answers = self._cat_file.stdin, self._cat_file.stdout
        assert requests is not None and answers is not None
        if _ask_object(requests, answers, "info", blob_id) > max_bytes:
            return None
        size = _ask_object(requests, answers, "contents", blob_id)
        return answers.read(size + 1)[:-1]

    def close(self) -> None:
        """End the process that reads blobs."""
        if self._cat_file is not None:
            self._cat_file.communicate()
            self._cat_file = None

    def _command(self, *arguments: str) -> list[str]:
        name, *rest = arguments
        return ["git", *_SAFE, "-C", str(self._path), name, *_NEVER_RUN.get(name, ()), *rest]

    def _ask(self, *arguments: str) -> str | None:
        """A short answer, None when git says no."""
        result = subprocess.run(self._command(*arguments), capture_output=True, env=self._environment, check=False)
        return result.stdout.decode(errors="replace").strip() if result.returncode == 0 else None

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command(*arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self._environment
        )


def _ask_object(requests: IO[bytes], answers: IO[bytes], question: str, blob_id: str) -> int:
    """Size of an object, as git cat-file announces it."""
    requests.write(f"{question} {blob_id}\n".encode())
    requests.flush()
    answer = answers.readline()
    if not answer or answer.endswith(_MISSING):
        raise InputError(f"object {blob_id} is missing from the clone: fetch it, or clone again")
    return int(answer.split()[2])
