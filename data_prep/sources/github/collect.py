"""Collecting GitHub: repositories to directories of records, each repository once, however often the work is killed."""

import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from data_prep.changes.record import Change
from data_prep.changes.shards import write_records
from data_prep.io.errors import InputError, printable
from data_prep.io.files import jsonl_writer
from data_prep.io.response_cache import ResponseCache
from data_prep.io.shards import ShardedStep, ShardWork
from data_prep.sources.git import GitSource
from data_prep.sources.git_command import MissingObjects
from data_prep.sources.git_graph import NotReplayable
from data_prep.sources.github.addresses import RefusedAnswer
from data_prep.sources.github.client import DEFAULT_URL, GitHubClient, Unavailable
from data_prep.sources.github.clone import CannotClone, RemoteClone, RepositoryMoved
from data_prep.sources.github.code_by_api import ApiCode
from data_prep.sources.github.conversation import PullRequestInfo, merged_pull_requests
from data_prep.sources.github.repositories import Repository, cloned_from, repository
from data_prep.sources.github.tokens import read_tokens
from data_prep.sources.landings import PullRequest
from data_prep.sources.repository_names import is_repository_name

CodeBy = Literal["git", "api"]
_PULL_REQUESTS_PER_FETCH = 400


def no_progress(said: object) -> None:
    """Nobody looks on."""


@dataclass(frozen=True)
class GitHubJob:
    """Repositories to records. `code` is had by git, or by the API where git cannot be.

    `tokens` names the file of tokens, None the environment: each task reads them itself, and takes its share.
    """

    repositories: tuple[str, ...]
    code: CodeBy = "git"
    url: str = DEFAULT_URL
    tokens: Path | None = None
    pause: float = 60.0
    timeout: float = 30.0
    on_record: Callable[[int], None] = no_progress
    on_state: Callable[[str], None] = no_progress

    def client(self, out: Path, rank: int = 0, tasks: int = 1) -> GitHubClient:
        """A client with a task's share of the tokens. Raises InputError where there are fewer tokens than tasks."""
        tokens = read_tokens(self.tokens)
        if 0 < len(tokens) < tasks:
            raise InputError(
                f"{tasks} tasks share {len(tokens)} tokens: a token is used by one task at a time, give more"
            )
        share = tokens[rank::tasks]
        return GitHubClient(share, cache_of(out), self.url, self.pause, self.timeout, self.on_state)

    def step(self, out: Path) -> ShardedStep:
        """The work, repository by repository. Raises InputError for a name that is none."""
        for name in self.repositories:
            if not is_repository_name(name):
                raise InputError(f"'{name}' is no repository: give OWNER/NAME")
        read_tokens(self.tokens)  # what is wrong with them is said before anything is written
        names = list(dict.fromkeys(self.repositories))
        described = {"source": self.url, "code": self.code, "names": names}
        shards = [Path(name.replace("/", "__")) for name in names]
        return ShardedStep(out, described, shards, lambda rank, tasks: self._open(out, rank, tasks))

    @contextmanager
    def _open(self, out: Path, rank: int, tasks: int) -> Iterator[ShardWork]:
        with self.client(out, rank, tasks) as client:
            yield lambda shard, folder: _Collector(self, out, client).collect(shard, folder)

    def summarize(self, notes: list[dict[str, Any]]) -> dict[str, Any]:
        """Counts over all repositories."""
        kinds: Counter[str] = sum((Counter(note["kinds"]) for note in notes), Counter())
        skipped: Counter[str] = sum((Counter(note["skipped"]) for note in notes), Counter())
        calls = sum(note["calls"] for note in notes)
        seen = sum(note["pull_requests"] for note in notes)
        return {
            "repositories": len(notes),
            "pull_requests": seen,
            "records": kinds.total(),
            "kinds": dict(sorted(kinds.items())),
            "skipped": dict(sorted(skipped.items())),
            "api_calls": calls,
            "api_calls_per_pull_request": calls / seen if seen else 0.0,
        }


def remove_scratch(out: Path) -> None:
    """What was kept for another start is not needed once all is collected."""
    shutil.rmtree(scratch_of(out), ignore_errors=True)


class _Collector:
    """The work of one process."""

    def __init__(self, job: GitHubJob, out: Path, client: GitHubClient) -> None:
        self._job, self._out, self._client = job, out, client

    def collect(self, shard: Path, folder: Path) -> dict[str, Any]:
        """Records of one repository; returns its counts."""
        name = shard.name.replace("__", "/", 1)
        calls = self._client.calls
        skipped: Counter[str] = Counter()
        with jsonl_writer(folder / "rejected" / f"{shard.name}.jsonl.zst") as rejected:

            def skip(what: str, reason: str) -> None:
                skipped[reason] += 1
                rejected.write({"id": what, "reason": reason})

            changes = self._changes(name, shard.name, skip)
            kinds = write_records(changes, folder / "records", self._job.on_record, f"{shard.name}-")
        shutil.rmtree(scratch_of(self._out) / "clones" / shard.name, ignore_errors=True)
        seen = sum(kinds.values()) + sum(n for reason, n in skipped.items() if not reason.startswith("repository_"))
        calls = self._client.calls - calls
        return {"name": name, "pull_requests": seen, "kinds": kinds, "skipped": skipped, "calls": calls}

    def _changes(self, name: str, shard: str, skip: Callable[[str, str], None]) -> Iterator[Change]:
        """The records of a repository; what GitHub has of it no more is skipped, what came before is kept."""
        try:
            found = repository(self._client, name)

            def refuse(number: str, why: str) -> None:
                print(printable(self._client.masked(why)), file=sys.stderr, flush=True)
                skip(f"{found.name}#{number}", "answer_refused")

            owner, _, own_name = found.name.partition("/")
            pages = merged_pull_requests(self._client, owner, own_name, refuse)
            infos = (info for page in pages for info in page)
            if self._job.code == "api":
                yield from self._by_api(found, infos, skip)
            else:
                clone = RemoteClone(cloned_from(self._client, found), scratch_of(self._out) / "clones" / shard)
                yield from self._by_git(found, clone, infos, skip)
        except Unavailable as status:
            skip(name, f"repository_unavailable_{status}")
        except RefusedAnswer as sentence:  # the server's other repositories may be as they should
            print(printable(self._client.masked(sentence)), file=sys.stderr, flush=True)
            skip(name, "repository_answer_refused")
        except RepositoryMoved:  # renamed since its answer was kept, or sent away
            skip(name, "repository_moved")
        except CannotClone as error:
            raise InputError(
                f"git cannot fetch {name} ({error}): start the command again, it goes on where it was; "
                "or give --code api"
            ) from None

    def _by_git(
        self, found: Repository, clone: RemoteClone, infos: Iterator[PullRequestInfo], skip: Callable[[str, str], None]
    ) -> Iterator[Change]:
        every = list(infos)  # their heads are fetched together; the code, which is what is large, comes bit by bit
        clone.fetch_pull_heads(info.number for info in every)
        source = GitSource(clone.reader, shared=True)
        source.repository = found.name
        rest = iter(every)
        try:
            while some := list(islice(rest, _PULL_REQUESTS_PER_FETCH)):
                planned = [(info, _planned(info, source)) for info in some]
                clone.fetch_contents({blob for _, plan in planned if plan for blob in source.blob_ids(plan)})
                for info, plan in planned:
                    yield from _record(found, info, plan, source.record, skip)
        finally:
            source.git.close()

    def _by_api(
        self, found: Repository, infos: Iterator[PullRequestInfo], skip: Callable[[str, str], None]
    ) -> Iterator[Change]:
        code = ApiCode(self._client, found.name)
        for info in infos:
            plan = PullRequest("squash", info.number, info.title, info.body, "", info.landed or "", info.head)
            try:
                with self._client.refused_if_odd():
                    changes = list(_record(found, info, plan, code.record, skip))
            except RefusedAnswer as error:
                print(printable(self._client.masked(error)), file=sys.stderr, flush=True)
                skip(f"{found.name}#{info.number}", "answer_refused")
                continue
            yield from changes


def scratch_of(out: Path) -> Path:
    """Where answers and clones lie until everything is collected."""
    return out.absolute().with_name(f"{out.name}.scratch")


def cache_of(out: Path) -> ResponseCache:
    """The answers that a collection into `out` has had."""
    return ResponseCache(scratch_of(out) / "answers")


def _planned(info: PullRequestInfo, source: GitSource) -> PullRequest | None:
    """What the clone is to be asked, None where it lacks the commit that the pull request became."""
    graph = source.graph
    if info.landed is None or not graph.parents.get(info.landed):
        return None
    first, *others = graph.parents[info.landed]
    head = source.pull_heads.get(info.number)
    own = others[0] if others else head  # a branch may have gone on after it was merged
    return PullRequest("merge" if others else "squash", info.number, info.title, info.body, first, info.landed, own)


def _record(
    found: Repository,
    info: PullRequestInfo,
    plan: PullRequest | None,
    record: Callable[[PullRequest], Change],
    skip: Callable[[str, str], None],
) -> Iterator[Change]:
    try:
        if plan is None:
            raise NotReplayable("code_is_gone")
        yield replace(record(plan), facts=found.facts, conversation=info.conversation)
    except NotReplayable as reason:
        skip(f"{found.name}#{info.number}", str(reason))
    except MissingObjects:
        skip(f"{found.name}#{info.number}", "contents_missing")
