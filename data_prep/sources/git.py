"""Changes out of a git clone, without network: merged pull requests, squashed ones, or plain commits."""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

from data_prep.changes.record import MAX_BLOB_BYTES, SUBMODULE, Change, Commit, FileChange
from data_prep.changes.swe_bench import holds_swe_bench
from data_prep.sources.git_command import GitClone, MissingObjects, TooLarge
from data_prep.sources.git_graph import Chain, CommitGraph, NotReplayable
from data_prep.sources.git_log import LOG_FORMAT, LogEntry, log_entries
from data_prep.sources.landings import NOT_LANDED, Kind, Landings, PullRequest, is_pull_number
from data_prep.sources.licenses import licenses_of
from data_prep.sources.structure import Structures

MAX_MESSAGE = 1 << 20  # characters of a commit's message
_MOST_BYTES = 256 << 20  # of all files of one change
_AT_ONCE = 64  # pull requests whose trees are read together


class GitSource:
    """The changes of one clone. `skipped` counts, by reason, what cannot become a record; `on_skip` hears of each.

    `name` is OWNER/NAME where the clone's remote does not tell it. `rebased`: whether pull requests that are known to
    have landed by their patches alone become records. `shared`: see GitReader.
    """

    def __init__(self, path: Path | str, name: str | None = None, rebased: bool = True, shared: bool = False) -> None:
        self.on_skip: Callable[[str, str], None] = lambda name, reason: None
        self.git = GitClone(Path(path), shared)
        refs = {
            ref.split("/")[2]: commit for ref, commit in self.git.refs("refs/pull/").items() if ref.endswith("/head")
        }
        self.pull_heads = {int(number): commit for number, commit in refs.items() if is_pull_number(number)}
        self._odd_refs = sorted(refs.keys() - set(map(str, self.pull_heads)))
        self.repository = name or self.git.repository_name()
        self.skipped: Counter[str] = Counter()
        self.heads: Counter[str] = Counter()
        self.of_swe_bench = False
        self._rebased = rebased
        self._structures = Structures(self.git)
        self._graph: CommitGraph | None = None
        self._num_records = 0
        self._missing: MissingObjects | None = None
        self._licenses: tuple[str, ...] | None = None

    @property
    def graph(self) -> CommitGraph:
        """All commits of the clone; read when first asked for."""
        if self._graph is None:
            lines = self.git.stream("log", "-z", "--format=%H %P", "--all", "HEAD")
            split = (line.split(" ") for line in lines)
            self._graph = CommitGraph(((sha, tuple(filter(None, parents))) for sha, *parents in split), self.git.head)
            self.of_swe_bench = holds_swe_bench(self._graph.parents)
        return self._graph

    @property
    def licenses(self) -> tuple[str, ...]:
        """SPDX ids of the licences that lie at the top of the newest version."""
        if self._licenses is None:
            self._licenses = licenses_of(self.git)
        return self._licenses

    def changes(self) -> Iterator[Change]:
        """Every merged pull request of the history, oldest first; where it has none, every plain commit.

        Each of `pull_heads` is counted in `heads`: as a record, as rejected, or as not landed as far as it shows.
        """
        landings = self._landings()
        for odd in self._odd_refs:
            self.skip(f"{self.repository}#{odd}", "number_too_large")
        try:
            with ThreadPoolExecutor(1) as beside:  # git compares patches while the first records are made
                planned = landings.planned(self._history())
                unnamed = beside.submit(lambda: list(landings.unnamed(planned, self._outside(), self.git.patch_ids)))
                ended = yield from self._records(planned.values())
                for number, found in unnamed.result():
                    if isinstance(found, PullRequest):
                        ended |= yield from self._records([found])
                    else:
                        ended[number] = found
                        self.skip(f"{self.repository}#{number}", found)
            self.heads.update(_how(ended[number]) for number in self.pull_heads)
            if not planned and "record" not in ended.values():
                yield from self._plain_records(landings.refused)
            if self._missing and not self._num_records:  # not some objects are lacking: it is a clone without contents
                raise self._missing
        finally:
            self.git.close()

    def pull_requests(self) -> list[PullRequest]:
        """The pull requests that the history names, oldest first."""
        return list(self._landings().planned(self._history()).values())

    def _landings(self) -> Landings:
        return Landings(self.graph, self.pull_heads, lambda what, reason: self.skip(self.repository + what, reason))

    def _plain_records(self, refused: set[str]) -> Iterator[Change]:
        yield from self._records(each for each in self._plain_commits() if each.landed not in refused)

    def _records(self, planned: Iterable[PullRequest]) -> Generator[Change, None, dict[int | None, str]]:
        """Records of pull requests; returns what became of each number."""
        ended: dict[int | None, str] = {}
        for pull_request in self._with_trees(planned):
            try:
                if pull_request.kind == "rebase" and not self._rebased:
                    raise NotReplayable("rebased")
                yield self.record(pull_request)
                ended[pull_request.number] = "record"
                self._num_records += 1
            except (NotReplayable, MissingObjects) as error:
                self._missing = error if isinstance(error, MissingObjects) else self._missing
                reason = str(error) if isinstance(error, NotReplayable) else "contents_missing"
                ended[pull_request.number] = reason
                self.skip(planned_id(self.repository, pull_request), reason)
        return ended

    def _with_trees(self, planned: Iterable[PullRequest]) -> Iterator[PullRequest]:
        """The same, some of them at a time, whose trees are then at hand."""
        rest = iter(planned)
        while some := list(islice(rest, _AT_ONCE)):
            bases = (self._likely_base(each) for each in some)
            with suppress(MissingObjects, NotReplayable):  # told where it is needed
                self._structures.prefetch(base for base in bases if base)
            yield from some

    def _likely_base(self, planned: PullRequest) -> str | None:
        try:
            chain = self._own_chain(planned) if planned.kind in ("merge", "rebase") else None
            return (chain or self._alone(planned.landed)).base
        except NotReplayable:
            return None

    def skip(self, name: str, reason: str) -> None:
        """Count a change that is left out."""
        self.skipped[reason] += 1
        self.on_skip(name, reason)

    def _plain_commits(self) -> Iterator[PullRequest]:
        for entry in self._history("--no-merges"):
            yield PullRequest("commit", None, entry.subject, entry.body, "", entry.sha, None, entry.landed_at)

    def _history(self, *options: str) -> Iterator[LogEntry]:
        fields = self.git.stream(
            "log", "-z", "--topo-order", "--reverse", "--no-patch", f"--format={LOG_FORMAT}", *options
        )
        yield from log_entries(fields)

    def _outside(self) -> dict[str, LogEntry]:
        """The commits that the main line has not taken in."""
        return {entry.sha: entry for entry in self._history("--all", "--not", "HEAD")} if self.pull_heads else {}

    def record(self, planned: PullRequest) -> Change:
        """The record of a pull request. Raises NotReplayable where its commits cannot be told one after the other."""
        kind, chain = self._landing(planned)
        entries = list(self._entries_of(chain.commits))
        if any(len(entry.message) > MAX_MESSAGE for entry in entries):
            raise NotReplayable("message_too_long")
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
            blobs=self._contents(commits),
            landed_at=planned.landed_at or None,
            licenses=self.licenses,
            structure=self._structures.of(chain.base),
            of_swe_bench=self.of_swe_bench,
        )

    def _contents(self, commits: Sequence[Commit]) -> dict[str, bytes | None]:
        try:
            return self.git.blobs(list(blobs_of(commits)), MAX_BLOB_BYTES, _MOST_BYTES)
        except TooLarge:
            raise NotReplayable("too_large") from None

    def blob_ids(self, planned: PullRequest) -> set[str]:
        """Ids of all file contents that the record of a pull request may need; asks for none of them."""
        try:
            chain = self._own_chain(planned)
            pairs = [] if planned.kind in ("merge", "rebase") else [(planned.landed, self._alone(planned.landed).base)]
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
        entries = log_entries(self.git.diffs(lines, LOG_FORMAT, renames=False))
        return {blob for entry in entries for file in entry.files for blob in _blobs_of_file(file)}

    def _landing(self, planned: PullRequest) -> tuple[Kind, Chain]:
        """How a pull request landed, and its own commits; those of a squash only where they make the same patch."""
        chain = self._own_chain(planned)
        if planned.kind in ("merge", "rebase") and chain is not None:
            return planned.kind, chain
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
            if planned.kind in ("merge", "rebase"):
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
        own, landed = (set(entry.files) for entry in log_entries(self.git.diffs(pairs, LOG_FORMAT)))
        if own == landed:
            return True
        paths = [{path for file in files for path in (file.path, file.old_path)} for files in (own, landed)]
        if chain.merges or paths[0] != paths[1]:
            return False
        patch = self.git.patch_id(chain.base, head)  # the branch had moved on elsewhere in the same files
        return patch is not None and patch == self.git.patch_id(old, new)

    def _entries_of(self, commits: Sequence[str]) -> Iterator[LogEntry]:
        """The commits with their files, each against its first parent."""
        lines = [f"{commit} {self.graph.parents[commit][0]}" for commit in commits]
        yield from log_entries(self.git.diffs(lines, LOG_FORMAT))

    def _merge_commit(self, entry: LogEntry, touched: set[str]) -> Commit:
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


def _how(ended: str) -> str:
    """What the summary of heads calls an end."""
    return {"record": "records", NOT_LANDED: "not_landed"}.get(ended, "rejected")


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
