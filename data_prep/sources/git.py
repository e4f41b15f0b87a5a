"""Changes out of a git clone, without network: merged pull requests, squashed ones, or plain commits."""

import re
import secrets
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from data_prep.pull_request.record import MAX_BLOB_BYTES, SUBMODULE, Change, Commit, FileChange
from data_prep.sources.git_command import GitClone

_MERGE_SUBJECT = re.compile(r"Merge pull request #(\d+) from \S+")
_SQUASH_SUBJECT = re.compile(r"(?P<title>.*\S)\s*\(#(?P<number>\d+)\)$")
# A mark that no path can hold opens each commit among the raw diff entries; NUL separates everything.
_MARK = f"davinci {secrets.token_hex(16)} /"
_LOG_FORMAT = f"--format={_MARK}%H%x00%P%x00%an%x00%aI%x00%B"
_RAW_DIFF = ("--raw", "-z", "-M", "--no-abbrev", "--diff-merges=off")


_Planned = tuple[str, int, str, str, str, str]  # kind, number, title, body, head, range of commits


class NotReplayable(Exception):
    """A change that is skipped; the message is the reason's name."""


@dataclass(frozen=True)
class _LogEntry:
    sha: str
    parents: list[str]
    author: str
    authored_at: str
    message: str
    files: tuple[FileChange, ...]

    @property
    def subject(self) -> str:
        return self.message.partition("\n")[0]

    @property
    def body(self) -> str:
        return self.message.partition("\n")[2].strip()


class GitSource:
    """The changes of one clone. `skipped` counts, by reason, those that cannot become a record."""

    def __init__(self, path: Path) -> None:
        self._git = GitClone(path)
        self._pull_heads = self._git.refs("refs/pull/*/head")
        self.repository = self._git.repository_name()
        self.skipped: Counter[str] = Counter()

    def changes(self) -> Iterator[Change]:
        """Every merged pull request of the history, oldest first; where it has none, every plain commit."""
        try:
            pull_requests = self._pull_requests()
            for planned in pull_requests:
                yield from self._record(*planned)
            if not pull_requests:
                for entry in self._history("--no-merges"):
                    yield from self._record("commit", None, entry.subject, entry.body, entry.sha, entry.sha + "^!")
        finally:
            self._git.close()

    def _pull_requests(self) -> list[_Planned]:
        """One entry per number, oldest first. A fork's history may bring numbers of its own: the main line's win."""
        main_line = {entry.sha for entry in self._history("--first-parent")}
        chosen: dict[int, tuple[bool, _Planned]] = {}
        for entry in self._history():
            planned = self._pull_request(entry)
            if planned is None:
                continue
            on_main_line, number = entry.sha in main_line, planned[1]
            if number in chosen:
                self.skipped["number_seen_before"] += 1
            if number not in chosen or (on_main_line and not chosen[number][0]):
                chosen[number] = (on_main_line, planned)
        return [planned for _, planned in chosen.values()]

    def _history(self, *options: str) -> Iterator[_LogEntry]:
        yield from self._log("--topo-order", "--reverse", "--no-patch", *options, "HEAD")

    def _pull_request(self, entry: _LogEntry) -> _Planned | None:
        """What `entry` brought in, where that was a pull request."""
        merge = _MERGE_SUBJECT.match(entry.subject)
        if merge and len(entry.parents) == 2:
            title, _, body = entry.body.partition("\n")
            first, head = entry.parents
            return "merge", int(merge[1]), title, body.strip(), head, f"{first}..{head}"
        squash = _SQUASH_SUBJECT.match(entry.subject)
        if squash and len(entry.parents) == 1:
            number = int(squash["number"])
            if self._pull_heads and f"refs/pull/{number}/head" not in self._pull_heads:
                return None  # "(#N)" names an issue, or a pull request of another repository
            head, commits = self._squashed_commits(entry, number)
            return "squash", number, squash["title"], entry.body, head, commits
        return None

    def _squashed_commits(self, entry: _LogEntry, number: int) -> tuple[str, str]:
        """The pull request's own commits where they make the same patch as the squash, else the squash itself."""
        head = self._pull_heads.get(f"refs/pull/{number}/head")
        fork = head and self._git.merge_base(entry.parents[0], head)
        patch = head and fork and self._git.patch_id(fork, head)
        if patch and patch == self._git.patch_id(entry.parents[0], entry.sha):
            assert head is not None
            return head, f"{fork}..{head}"
        return entry.sha, entry.sha + "^!"

    def _record(
        self, kind: str, number: int | None, title: str, body: str, head: str, commits: str
    ) -> Iterator[Change]:
        try:
            entries = list(self._log("--topo-order", "--reverse", *_RAW_DIFF, commits))
            base = _base_of_chain(entries)
        except NotReplayable as reason:
            self.skipped[str(reason)] += 1
            return
        yield Change(
            repository=self.repository,
            kind=kind,  # type: ignore[arg-type]  # one of the three literals above
            number=number,
            title=title or entries[0].subject,
            body=body,
            base=base,
            head=head,
            commits=tuple(Commit(e.sha, e.message.strip(), e.author, e.authored_at, e.files) for e in entries),
            blobs=self._blobs(entries),
        )

    def _blobs(self, entries: list[_LogEntry]) -> dict[str, bytes | None]:
        wanted: dict[str, None] = {}
        for entry in entries:
            for file in entry.files:
                for blob, mode in ((file.old_blob, file.old_mode), (file.new_blob, file.new_mode)):
                    if blob is not None and mode != SUBMODULE:
                        wanted[blob] = None
        return {blob: self._git.blob(blob, MAX_BLOB_BYTES) for blob in wanted}

    def _log(self, *arguments: str) -> Iterator[_LogEntry]:
        fields = self._git.stream("log", "-z", _LOG_FORMAT, *arguments)
        head: list[str] = []
        raw: list[str] = []
        for field in fields:
            if field.startswith(_MARK):
                if head:
                    yield _log_entry(head, raw)
                head, raw = [field.removeprefix(_MARK)], []
            elif len(head) < 5:
                head.append(field)
            else:
                raw.append(field)
        if head:
            yield _log_entry(head, raw)


def _base_of_chain(entries: list[_LogEntry]) -> str:
    """The parent of the first commit of a chain without merges."""
    if not entries:
        raise NotReplayable("no_commits")
    if any(len(entry.parents) > 1 for entry in entries):
        raise NotReplayable("merge_inside")
    if not entries[0].parents:
        raise NotReplayable("root_commit")
    if any(entry.parents[0] != before.sha for before, entry in pairwise(entries)):
        raise NotReplayable("not_a_chain")
    return entries[0].parents[0]


def _log_entry(head: list[str], raw: list[str]) -> _LogEntry:
    sha, parents, author, authored_at, message = head
    return _LogEntry(sha, parents.split(), author, authored_at, message, tuple(_file_changes(raw)))


def _file_changes(raw: list[str]) -> Iterator[FileChange]:
    """Parse ":old_mode new_mode old_blob new_blob status" NUL path [NUL new path]."""
    fields = iter(raw)
    for field in fields:
        entry = field.lstrip("\n")
        if not entry:  # what separates the message from the diff
            continue
        old_mode, new_mode, old_blob, new_blob, status = entry.removeprefix(":").split(" ")
        old_path = next(fields)
        path = next(fields) if status[0] in "RC" else old_path
        yield FileChange(
            status=status[0],  # type: ignore[arg-type]  # git's own letter
            path=path,
            old_path=old_path,
            old_mode=None if status[0] == "A" else old_mode,
            new_mode=None if status[0] == "D" else new_mode,
            old_blob=None if status[0] == "A" else old_blob,
            new_blob=None if status[0] == "D" else new_blob,
        )
