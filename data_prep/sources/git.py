"""Changes out of a git clone, without network: merged pull requests, squashed ones, or plain commits."""

import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from data_prep.changes.record import MAX_BLOB_BYTES, SUBMODULE, Change, Commit, FileChange
from data_prep.sources.git_command import GitClone
from data_prep.sources.git_graph import Chain, CommitGraph, NotReplayable

_MERGE_SUBJECT = re.compile(r"Merge pull request #(\d+) from \S+")
_SQUASH_SUBJECT = re.compile(r"(?P<title>.*\S)\s*\(#(?P<number>\d+)\)$")
# A mark that no path can hold opens each commit among the raw diff entries; NUL separates everything.
_MARK = f"davinci {secrets.token_hex(16)} /"
_FORMAT = f"{_MARK}%H%x00%P%x00%an%x00%at%x00%B"


Kind = Literal["merge", "squash", "rebase", "commit"]


@dataclass(frozen=True)
class PullRequest:
    """What is known before the code is read: `target` is what the branch was, `landed` what it became, and `head` the
    pull request's own last commit, where there is one."""

    kind: Kind
    number: int | None
    title: str
    body: str
    target: str
    landed: str
    head: str | None


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
    """The changes of one clone. `skipped` counts, by reason, what cannot become a record; `on_skip` hears of each."""

    def __init__(self, path: Path | str) -> None:
        self.on_skip: Callable[[str, str], None] = lambda name, reason: None
        self.git = GitClone(Path(path))
        self.pull_heads = {int(ref.split("/")[2]): commit for ref, commit in self.git.refs("refs/pull/*/head").items()}
        self.repository = self.git.repository_name()
        self.skipped: Counter[str] = Counter()
        self._graph: CommitGraph | None = None

    @property
    def graph(self) -> CommitGraph:
        """All commits of the clone; read when first asked for."""
        if self._graph is None:
            lines = self.git.stream("log", "-z", "--format=%H %P", "--all", "HEAD")
            split = (line.split(" ") for line in lines)
            self._graph = CommitGraph(((sha, tuple(filter(None, parents))) for sha, *parents in split), self.git.head)
        return self._graph

    def changes(self) -> Iterator[Change]:
        """Every merged pull request of the history, oldest first; where it has none, every plain commit."""
        try:
            planned = self._pull_requests() or self._plain_commits()
            for pull_request in planned:
                try:
                    yield self.record(pull_request)
                except NotReplayable as reason:
                    self.skip(planned_id(self.repository, pull_request), str(reason))
        finally:
            self.git.close()

    def skip(self, name: str, reason: str) -> None:
        """Count a change that is left out."""
        self.skipped[reason] += 1
        self.on_skip(name, reason)

    def _plain_commits(self) -> Iterator[PullRequest]:
        for entry in self._history("--no-merges"):
            yield PullRequest("commit", None, entry.subject, entry.body, "", entry.sha, None)

    def _pull_requests(self) -> list[PullRequest]:
        """One entry per number, oldest first. A fork's history may bring numbers of its own: the main line's win."""
        chosen: dict[int, tuple[bool, PullRequest]] = {}
        for entry in self._history():
            planned = self._pull_request(entry)
            if planned is None or planned.number is None:
                continue
            on_main_line = self.graph.on_main_line(entry.sha)
            if planned.number in chosen:
                self.skip(f"{self.repository}#{planned.number}", "number_seen_before")
            if planned.number not in chosen or (on_main_line and not chosen[planned.number][0]):
                chosen[planned.number] = (on_main_line, planned)
        return [planned for _, planned in chosen.values()]

    def _history(self, *options: str) -> Iterator[_LogEntry]:
        fields = self.git.stream(
            "log", "-z", "--topo-order", "--reverse", "--no-patch", f"--format={_FORMAT}", *options
        )
        yield from _entries(fields)

    def _pull_request(self, entry: _LogEntry) -> PullRequest | None:
        """What `entry` brought in, where that was a pull request."""
        merge = _MERGE_SUBJECT.match(entry.subject)
        if merge and len(entry.parents) == 2:
            title, _, body = entry.body.partition("\n")
            target, head = entry.parents
            return PullRequest("merge", int(merge[1]), title, body.strip(), target, entry.sha, head)
        squash = _SQUASH_SUBJECT.match(entry.subject)
        if squash and len(entry.parents) == 1:
            number = int(squash["number"])
            if self.pull_heads and number not in self.pull_heads:
                return None  # "(#N)" names an issue, or a pull request of another repository
            own = self.pull_heads.get(number)
            return PullRequest("squash", number, squash["title"], entry.body, entry.parents[0], entry.sha, own)
        return None

    def record(self, planned: PullRequest) -> Change:
        """The record of a pull request. Raises NotReplayable where its commits cannot be told one after the other."""
        kind, chain = self._landing(planned)
        entries = list(self._entries_of(chain.commits))
        touched = {path for e in entries if e.sha not in chain.merges for f in e.files for path in (f.path, f.old_path)}
        commits = [
            self._merge_commit(entry, touched)
            if entry.sha in chain.merges
            else Commit(entry.sha, entry.message.strip(), entry.author, entry.authored_at, entry.files)
            for entry in entries
        ]
        return Change(
            repository=self.repository,
            kind=kind,
            number=planned.number,
            title=planned.title or entries[0].subject,
            body=planned.body,
            base=chain.base,
            head=chain.commits[-1],
            commits=tuple(commits),
            blobs=self.git.blobs(list(blobs_of(commits)), MAX_BLOB_BYTES),
        )

    def blob_ids(self, planned: PullRequest) -> set[str]:
        """Ids of all file contents that the record of a pull request may need; asks for none of them."""
        try:
            chain = self._own_chain(planned)
            pairs = [] if planned.kind == "merge" else [(planned.landed, self._alone(planned.landed).base)]
        except NotReplayable:
            return set()
        for commit in chain.commits if chain else ():
            pairs.append((commit, self.graph.parents[commit][0]))
            if chain and commit in chain.merges:
                ours, theirs = self.graph.parents[commit]
                before = self.git.merge_base(ours, theirs)
                pairs += [(side, before) for side in (ours, theirs) if before]
        if chain and (before := self._before_rebase(planned.landed, chain)):
            pairs.append((planned.landed, before))
        lines = [f"{new} {old}" for new, old in dict.fromkeys(pairs)]
        entries = _entries(self.git.diffs(lines, _FORMAT, renames=False))
        return {blob for entry in entries for file in entry.files for blob in _blobs_of_file(file)}

    def _landing(self, planned: PullRequest) -> tuple[Kind, Chain]:
        """How a pull request landed, and its own commits; those of a squash only where they make the same patch."""
        chain = self._own_chain(planned)
        if planned.kind == "merge" and chain is not None:
            return "merge", chain
        alone = self._alone(planned.landed)
        if chain is None:
            return planned.kind, alone
        if self._same_patch(chain, alone.base, planned.landed):
            return planned.kind, chain
        before = self._before_rebase(planned.landed, chain)
        if before is not None and self._same_patch(chain, before, planned.landed):
            return "rebase", chain
        [landed] = self._entries_of([planned.landed])
        if len(chain.commits) > 1 and f"(#{planned.number})" not in landed.subject:
            raise NotReplayable("landed_differently")  # it may be no more than the last commit
        return planned.kind, alone

    def _before_rebase(self, landed: str, chain: Chain) -> str | None:
        """What the branch was, if the chain's commits were put on top of it one by one."""
        at = landed
        for _ in chain.commits:
            parents = self.graph.parents.get(at)
            if not parents:
                return None
            at = parents[0]
        return at if len(chain.commits) > 1 and at in self.graph.parents else None

    def _own_chain(self, planned: PullRequest) -> Chain | None:
        if planned.head is None:
            return None
        try:
            return self.graph.chain(planned.target, planned.head)
        except NotReplayable:
            if planned.kind == "merge":
                raise
            return None

    def _alone(self, commit: str) -> Chain:
        parents = self.graph.parents.get(commit, ())
        if not parents:
            raise NotReplayable("root_commit")
        if parents[0] not in self.graph.parents:
            raise NotReplayable("history_is_cut_off")
        return Chain(parents[0], (commit,), frozenset())

    def _same_patch(self, chain: Chain, old: str, new: str) -> bool:
        head = chain.commits[-1]
        pairs = [f"{head} {chain.base}", f"{new} {old}"]
        own, landed = (set(entry.files) for entry in _entries(self.git.diffs(pairs, _FORMAT)))
        if own == landed:
            return True
        paths = [{path for file in files for path in (file.path, file.old_path)} for files in (own, landed)]
        if chain.merges or paths[0] != paths[1]:
            return False
        patch = self.git.patch_id(chain.base, head)  # the branch had moved on elsewhere in the same files
        return patch is not None and patch == self.git.patch_id(old, new)

    def _entries_of(self, commits: Sequence[str]) -> Iterator[_LogEntry]:
        """The commits with their files, each against its first parent."""
        lines = [f"{commit} {self.graph.parents[commit][0]}" for commit in commits]
        yield from _entries(self.git.diffs(lines, _FORMAT))

    def _merge_commit(self, entry: _LogEntry, touched: set[str]) -> Commit:
        """A merge of the target branch: what it did to the files that the change itself touches, without renames."""
        files = [file for change in entry.files for file in _without_rename(change) if file.path in touched]
        conflict = False
        if files:
            ours, theirs = self.graph.parents[entry.sha]
            by_git = self.git.merged_by_git(ours, theirs, [file.path for file in files])
            if by_git is None:
                raise NotReplayable("merge_cannot_be_checked")
            held = {file.path: (file.new_mode, file.new_blob) for file in files if file.status != "D"}
            conflict = by_git != held
        return Commit(
            entry.sha,
            entry.message.strip(),
            entry.author,
            entry.authored_at,
            tuple(files),
            merge=True,
            conflict=conflict,
        )


def planned_id(repository: str, planned: PullRequest) -> str:
    """What the record of a pull request would be called."""
    return f"{repository}#{planned.number}" if planned.number is not None else f"{repository}@{planned.landed}"


def blobs_of(commits: Sequence[Commit]) -> dict[str, None]:
    """Ids of all file contents that commits name, in order, each once."""
    return {blob: None for commit in commits for file in commit.files for blob in _blobs_of_file(file)}


def _blobs_of_file(file: FileChange) -> list[str]:
    sides = ((file.old_blob, file.old_mode), (file.new_blob, file.new_mode))
    return [blob for blob, mode in sides if blob is not None and mode != SUBMODULE]


def _without_rename(file: FileChange) -> list[FileChange]:
    if file.status != "R":
        return [file]
    gone = replace(file, status="D", path=file.old_path, new_mode=None, new_blob=None)
    return [gone, replace(file, status="A", old_path=file.path, old_mode=None, old_blob=None)]


def _entries(fields: Iterator[str]) -> Iterator[_LogEntry]:
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


def _log_entry(head: list[str], raw: list[str]) -> _LogEntry:
    sha, parents, author, seconds, message = head
    return _LogEntry(sha, parents.split(), author, _time(seconds), message, tuple(_file_changes(raw)))


def _time(seconds: str) -> str:
    """ISO 8601 in UTC; nothing for what no clock shows."""
    try:
        return datetime.fromtimestamp(int(seconds), UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return ""


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
