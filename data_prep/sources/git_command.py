"""The git command, read-only, on a clone that is not trusted.

git itself and not a binding, because only git reads a partial (blobless) clone.
"""

import os
import re
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from data_prep.io.errors import InputError, printable
from data_prep.sources.git_reader import GIT, GitReader
from data_prep.sources.repository_names import is_repository_name

_NEVER_RUN = {"log": ("--no-ext-diff", "--no-textconv"), "diff": ("--no-ext-diff", "--no-textconv")}
_REMOTE_NAME = re.compile(r"^(?:(?!file)\w+://[^/]+/|[\w.@-]+:(?!//))(?:[^:]*/)?([^/:]+/[^/:]+?)(?:\.git)?/*$")
_QUESTIONS_AHEAD = 400  # written before the first answer is read: they fit into a pipe
_BLOCK_BYTES = 1 << 16
MAX_FIELD_BYTES = 2 << 20  # of a message or a path: no more is held


class MissingObjects(InputError):
    """A clone lacks objects that are asked for."""


class TooLarge(Exception):
    """What is asked for together is more than may be held."""


class GitClone:
    """One clone, bare or not, read through a `GitReader`. Raises InputError when `path` is none, or has no commit."""

    def __init__(self, path: Path, shared: bool = False) -> None:
        self._reader = GitReader(path, shared)
        self._path = path
        head = self._ask("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
        if head is None or self._reader.is_shallow:
            self._reader.close()
        if head is None:
            raise InputError(f"{path} has no commits on its current branch: there is nothing to collect")
        if self._reader.is_shallow:
            raise InputError(f"{path} is shallow: parents of its oldest commits are missing; run git fetch --unshallow")
        self.head = head
        self._cat_file: subprocess.Popen[bytes] | None = None
        self._diff_tree: dict[bool, subprocess.Popen[bytes]] = {}

    def repository_name(self) -> str:
        """owner/name out of the remote's address, else the folder's name."""
        match = _REMOTE_NAME.match(self._reader.remote())
        folder = self._path.resolve().name.removesuffix(".git")
        return match[1] if match and is_repository_name(match[1]) else printable(folder)

    def refs(self, prefix: str) -> dict[str, str]:
        """Names of refs that begin so -> their objects, of which the clone may lack some."""
        return {name: found for name, found in self._reader.refs.items() if name.startswith(prefix)}

    def merge_base(self, one: str, other: str) -> str | None:
        """The best common ancestor of two commits."""
        return self._ask("merge-base", one, other)

    def patch_id(self, old: str, new: str) -> str | None:
        """git's identity of the patch between two commits, blind to where its hunks lie; None for an empty one."""
        with self._start("diff", "--full-index", "--binary", old, new) as diff:
            found = self._run([*self._command("patch-id"), "--stable"], stdin=diff.stdout)
        named = found.stdout.decode().partition(" ")[0] if diff.returncode == 0 else ""
        return named or None

    def patch_ids(self, commits: Sequence[str]) -> dict[str, str | None]:
        """Commit -> git's identity of its patch against its first parent, see `patch_id`. Empty patches have none; None
        stands where the clone lacks the contents.
        """
        found, whole = self._patch_ids(commits)
        if whole:
            return dict(found)
        if len(commits) == 1:
            return {commits[0]: None}
        if found:
            found.popitem()  # git has stopped at the first that it cannot compare, perhaps half-way through its patch
        alone = (self.patch_ids([commit]) for commit in commits if commit not in found)
        return {**found, **{commit: patch for each in alone for commit, patch in each.items()}}

    def _patch_ids(self, commits: Sequence[str]) -> tuple[dict[str, str], bool]:
        with TemporaryFile() as names:
            names.write("".join(f"{commit}\n" for commit in commits).encode())
            names.seek(0)
            options = ("--stdin", "-r", "-p", "--full-index", "--binary", "--no-ext-diff", "--no-textconv")
            command, pipe = self._command("diff-tree", *options), subprocess.PIPE
            diffs = subprocess.Popen(
                command, stdin=names, stdout=pipe, stderr=subprocess.DEVNULL, env=self._reader.environment
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
            yield from _fields(process.stdout)
            if process.wait() != 0:
                raise InputError(f"git {arguments[0]} failed in {self._path}: is the clone complete?")

    def blobs(self, blob_ids: Sequence[str], max_bytes: int, max_total: int | None = None) -> dict[str, bytes | None]:
        """Contents of blobs by id, None above `max_bytes`. Raises MissingObjects for one that the clone lacks, and
        TooLarge for more than `max_total` bytes of all.
        """
        if self._cat_file is None:
            self._cat_file = self._start("cat-file", "--batch-command")
        found: dict[str, bytes | None] = {}
        total = 0
        try:
            for at in range(0, len(blob_ids), _QUESTIONS_AHEAD):
                some = blob_ids[at : at + _QUESTIONS_AHEAD]
                sizes = dict(zip(some, (size for size, _ in self._objects("info", "blob", some)), strict=True))
                wanted = [blob_id for blob_id in some if sizes[blob_id] <= max_bytes]
                total += sum(sizes[blob_id] for blob_id in wanted)
                if max_total is not None and total > max_total:
                    raise TooLarge
                contents = dict(
                    zip(wanted, (content for _, content in self._objects("contents", "blob", wanted)), strict=True)
                )
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
                yield from (content or b"" for _, content in self._objects("contents", "tree", asked))
        except MissingObjects:
            self._cat_file.communicate()  # what it has still to say answers no later question
            self._cat_file = None
            raise

    def _objects(self, question: str, kind: str, blob_ids: Sequence[str]) -> Iterator[tuple[int, bytes | None]]:
        """Size, and where asked content, of each object: all questions are asked before the first answer is read."""
        assert self._cat_file is not None and self._cat_file.stdin is not None and self._cat_file.stdout is not None
        answers = self._cat_file.stdout
        self._cat_file.stdin.write("".join(f"{question} {blob_id}\n" for blob_id in blob_ids).encode())
        self._cat_file.stdin.flush()
        for blob_id in blob_ids:
            answer = answers.readline()
            facts = answer.split()
            if facts[1:2] != [kind.encode()]:  # it is missing, or what names it is damaged
                raise MissingObjects(
                    f"object {blob_id} is missing from {self._path}: the clone is shallow or partial; "
                    "deepen it with git fetch --unshallow, or clone it again without --filter"
                )
            size = int(facts[2])
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
                yield from _fields(diff_tree.stdout, end.encode())
            except EOFError:
                self._diff_tree.pop(renames).communicate()
                raise MissingObjects(
                    f"git cannot compare two versions in {self._path}: the clone is partial or damaged; "
                    "clone it again without --filter"
                ) from None

    def merged_by_git(self, ours: str, theirs: str, paths: Sequence[str]) -> dict[str, tuple[str, str]] | None:
        """path -> (mode, blob) in the tree that git by itself makes of two commits; None where it cannot.

        In the reader, whose configuration names no merge driver, and which takes the new objects.
        """
        merged = self._run(self._command("merge-tree", "--write-tree", "--no-messages", ours, theirs))
        if merged.returncode not in (0, 1):  # 1: with conflicts, somewhere
            return None
        tree = merged.stdout.decode(errors="replace").partition("\n")[0]
        git = [*GIT, "--literal-pathspecs", "-C", str(self._reader.directory)]
        listing = self._run([*git, "ls-tree", "-r", "-z", "--full-tree", tree, "--", *paths])
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
        self._reader.close()

    def _command(self, *arguments: str) -> list[str]:
        name, *rest = arguments
        return [*GIT, "-C", str(self._reader.directory), name, *_NEVER_RUN.get(name, ()), *rest]

    def _run(self, command: list[str], stdin: IO[bytes] | None = None) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(command, stdin=stdin, capture_output=True, env=self._reader.environment, check=False)

    def _ask(self, *arguments: str) -> str | None:
        """A short answer, None when git says no."""
        result = self._run(self._command(*arguments))
        return result.stdout.decode(errors="replace").strip() if result.returncode == 0 else None

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command(*arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=self._reader.environment,
        )


def _fields(pipe: IO[bytes], end: bytes | None = None) -> Iterator[str]:
    """NUL-separated fields up to `end`, or up to the end of the output. Of one that is too long the rest is dropped.

    Raises EOFError where `end` does not come.
    """
    pieces, held = list[bytes](), 0
    while block := os.read(pipe.fileno(), _BLOCK_BYTES):
        first, *others = block.split(b"\0")
        if held <= MAX_FIELD_BYTES:
            pieces.append(first)
            held += len(first)
        if others:
            yield b"".join(pieces).decode(errors="replace")
            yield from (field.decode(errors="replace") for field in others[:-1])
            pieces, held = [others[-1]], len(others[-1])
        if end is not None and held <= MAX_FIELD_BYTES and block.endswith(end[-1:]):
            last = b"".join(pieces)
            if last.endswith(end):
                if last != end:
                    yield last.removesuffix(end).decode(errors="replace")
                return
    if end is not None:
        raise EOFError
    if held:
        yield b"".join(pieces).decode(errors="replace")
