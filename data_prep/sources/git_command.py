"""The git command, read-only, on a clone that is not trusted.

git itself and not a binding, because only git reads a partial (blobless) clone.
"""

import os
import re
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO

from data_prep.io.errors import InputError
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
_QUESTIONS_AHEAD = 400  # written before the first answer is read: they fit into a pipe
_BLOCK_BYTES = 1 << 16


class MissingObjects(InputError):
    """A clone lacks objects that are asked for."""


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
        head = self._ask("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
        if head is None:
            raise InputError(f"{path} has no commits on its current branch: there is nothing to collect")
        if self._ask("rev-parse", "--is-shallow-repository") == "true":
            raise InputError(f"{path} is shallow: parents of its oldest commits are missing; run git fetch --unshallow")
        self.head = head
        self._cat_file: subprocess.Popen[bytes] | None = None
        self._diff_tree: dict[bool, subprocess.Popen[bytes]] = {}

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

    def patch_ids(self, commits: Sequence[str]) -> dict[str, str]:
        """Commit -> git's identity of its patch against its first parent, see `patch_id`. Empty patches have none, nor
        have those whose contents the clone lacks.
        """
        found, whole = self._patch_ids(commits)
        if not whole and len(commits) > 1:  # git has stopped at the first that it cannot compare
            for commit in (commit for commit in commits if commit not in found):
                found |= self._patch_ids([commit])[0]
        return found

    def _patch_ids(self, commits: Sequence[str]) -> tuple[dict[str, str], bool]:
        with TemporaryFile() as names:
            names.write("".join(f"{commit}\n" for commit in commits).encode())
            names.seek(0)
            options = ("--stdin", "-r", "-p", "--full-index", "--binary", "--no-ext-diff", "--no-textconv")
            command, pipe = self._command("diff-tree", *options), subprocess.PIPE
            diffs = subprocess.Popen(
                command, stdin=names, stdout=pipe, stderr=subprocess.DEVNULL, env=self._environment
            )
            with diffs:
                found = self._run([*self._command("patch-id"), "--stable"], stdin=diffs.stdout)
        lines = (line.split(" ") for line in found.stdout.decode().splitlines())
        return {commit: patch for patch, commit in lines}, diffs.returncode == 0

    def top_files(self) -> dict[str, str]:
        """Name -> blob of the files that lie at the top of the newest version."""
        listing = self._ask("ls-tree", "-z", self.head) or ""
        entries = [entry.partition("\t") for entry in listing.split("\0") if entry]
        return {name: facts.split(" ")[2] for facts, _, name in entries if facts.split(" ")[1] == "blob"}

    def stream(self, *arguments: str) -> Iterator[str]:
        """NUL-separated fields of a command's output, as they come; bytes that are not UTF-8 become U+FFFD."""
        with self._start(*arguments) as process:
            assert process.stdout is not None
            rest = b""
            while block := os.read(process.stdout.fileno(), _BLOCK_BYTES):
                *fields, rest = (rest + block).split(b"\0")
                yield from (field.decode(errors="replace") for field in fields)
            if rest:
                yield rest.decode(errors="replace")
            if process.wait() != 0:
                raise InputError(f"git {arguments[0]} failed in {self._path}: is the clone complete?")

    def blobs(self, blob_ids: Sequence[str], max_bytes: int) -> dict[str, bytes | None]:
        """Contents of blobs by id, None above `max_bytes`. Raises InputError for one that the clone lacks."""
        if self._cat_file is None:
            self._cat_file = self._start("cat-file", "--batch-command")
        found: dict[str, bytes | None] = {}
        try:
            for at in range(0, len(blob_ids), _QUESTIONS_AHEAD):
                some = blob_ids[at : at + _QUESTIONS_AHEAD]
                sizes = dict(zip(some, (size for size, _ in self._objects("info", some)), strict=True))
                wanted = [blob_id for blob_id in some if sizes[blob_id] <= max_bytes]
                contents = dict(zip(wanted, (content for _, content in self._objects("contents", wanted)), strict=True))
                found |= {blob_id: contents.get(blob_id) for blob_id in some}
        except MissingObjects:
            self._cat_file.communicate()  # what it has still to say answers no later question
            self._cat_file = None
            raise
        return found

    def trees(self, names: Sequence[str]) -> Iterator[bytes]:
        """Tree objects: mode, name, NUL and id of each entry. Raises MissingObjects for one that the clone lacks."""
        if self._cat_file is None:
            self._cat_file = self._start("cat-file", "--batch-command")
        try:
            for at in range(0, len(names), _QUESTIONS_AHEAD):
                asked = names[at : at + _QUESTIONS_AHEAD]
                yield from (content or b"" for _, content in self._objects("contents", asked))
        except MissingObjects:
            self._cat_file.communicate()  # what it has still to say answers no later question
            self._cat_file = None
            raise

    def _objects(self, question: str, blob_ids: Sequence[str]) -> Iterator[tuple[int, bytes | None]]:
        """Size, and where asked content, of each object: all questions are asked before the first answer is read."""
        assert self._cat_file is not None and self._cat_file.stdin is not None and self._cat_file.stdout is not None
        answers = self._cat_file.stdout
        self._cat_file.stdin.write("".join(f"{question} {blob_id}\n" for blob_id in blob_ids).encode())
        self._cat_file.stdin.flush()
        for blob_id in blob_ids:
            answer = answers.readline()
            if not answer or answer.endswith(_MISSING):
                raise MissingObjects(
                    f"object {blob_id} is missing from {self._path}: the clone is shallow or partial; "
                    "deepen it with git fetch --unshallow, or clone it again without --filter"
                )
            size = int(answer.split()[2])
            yield size, answers.read(size + 1)[:-1] if question == "contents" else None

    def diffs(self, lines: Sequence[str], format: str, renames: bool = True) -> Iterator[str]:
        """NUL-separated fields of git diff-tree for lines of its input: "commit", "commit parent" or "tree tree".

        Finding renames needs the contents of files, which a partial clone may lack.
        """
        if renames not in self._diff_tree:
            options = ("-r", "-z", "--raw", "-M" if renames else "--no-renames", "--no-abbrev")
            self._diff_tree[renames] = self._start(
                "diff-tree", "--stdin", "--root", "--always", *options, f"--format={format}"
            )
        diff_tree = self._diff_tree[renames]
        assert diff_tree.stdin is not None and diff_tree.stdout is not None
        for at in range(0, len(lines), _QUESTIONS_AHEAD):
            end = f"end {secrets.token_hex(16)}\n"  # what is no object's name is repeated
            diff_tree.stdin.write("".join(f"{line}\n" for line in lines[at : at + _QUESTIONS_AHEAD]).encode())
            diff_tree.stdin.write(end.encode())
            diff_tree.stdin.flush()
            try:
                yield from _fields_until(diff_tree.stdout, end.encode())
            except EOFError:
                self._diff_tree.pop(renames).communicate()
                raise MissingObjects(
                    f"git cannot compare two versions in {self._path}: the clone is partial or damaged; "
                    "clone it again without --filter"
                ) from None

    def merged_by_git(self, ours: str, theirs: str, paths: Sequence[str]) -> dict[str, tuple[str, str]] | None:
        """path -> (mode, blob) in the tree that git by itself makes of two commits; None where it cannot.

        In a repository of our own, whose configuration names no merge driver, and which takes the new objects.
        """
        with TemporaryDirectory() as folder:
            self._run(["git", "init", "-q", "--bare", folder])
            objects = self._ask("rev-parse", "--path-format=absolute", "--git-path", "objects")
            Path(folder, "objects", "info", "alternates").write_text(f"{objects}\n")
            git = ["git", *_SAFE, "-C", folder]
            merged = self._run([*git, "merge-tree", "--write-tree", "--no-messages", ours, theirs])
            if merged.returncode not in (0, 1):  # 1: with conflicts, somewhere
                return None
            tree = merged.stdout.decode(errors="replace").partition("\n")[0]
            listing = self._run([*git, "--literal-pathspecs", "ls-tree", "-r", "-z", "--full-tree", tree, "--", *paths])
        found = {}
        for entry in listing.stdout.decode(errors="replace").split("\0")[:-1]:
            facts, _, path = entry.partition("\t")
            mode, _, blob = facts.split(" ")
            found[path] = (mode, blob)
        return found

    def close(self) -> None:
        """End the processes that read objects."""
        for process in (self._cat_file, *self._diff_tree.values()):
            if process is not None:
                process.communicate()
        self._cat_file, self._diff_tree = None, {}

    def _command(self, *arguments: str) -> list[str]:
        name, *rest = arguments
        return ["git", *_SAFE, "-C", str(self._path), name, *_NEVER_RUN.get(name, ()), *rest]

    def _run(self, command: list[str], stdin: IO[bytes] | None = None) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(command, stdin=stdin, capture_output=True, env=self._environment, check=False)

    def _ask(self, *arguments: str) -> str | None:
        """A short answer, None when git says no."""
        result = self._run(self._command(*arguments))
        return result.stdout.decode(errors="replace").strip() if result.returncode == 0 else None

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command(*arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self._environment
        )


def _fields_until(pipe: IO[bytes], end: bytes) -> Iterator[str]:
    rest = b""
    while not rest.endswith(end):
        block = os.read(pipe.fileno(), _BLOCK_BYTES)
        if not block:
            raise EOFError
        *fields, rest = (rest + block).split(b"\0")
        yield from (field.decode(errors="replace") for field in fields)
    if rest != end:
        yield rest.removesuffix(end).decode(errors="replace")
