"""Collecting GitHub: repositories to directories of records, each repository once, however often the work is killed."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from data_prep.errors import InputError
from data_prep.files import jsonl_writer
from data_prep.pull_request.build import write_records
from data_prep.pull_request.record import Change
from data_prep.shards import ShardedStep
from data_prep.sources.git import GitSource, PullRequest
from data_prep.sources.git_graph import NotReplayable
from data_prep.sources.github.cache import ResponseCache
from data_prep.sources.github.client import GitHubClient, Unavailable
from data_prep.sources.github.clone import CannotClone, RemoteClone
from data_prep.sources.github.code_by_api import ApiCode
from data_prep.sources.github.conversation import Talk, merged_pull_requests
from data_prep.sources.github.repositories import Repository, most_starred, repository

CodeBy = Literal["git", "api"]
_PULL_REQUESTS_PER_FETCH = 400


@dataclass(frozen=True)
class GitHubJob:
    """Which repositories, and how their code is had: `git`, or `api` where git cannot be."""

    client: GitHubClient
    out: Path
    repositories: tuple[str, ...] = ()
    top_starred: int | None = None
    language: str | None = None
    code: CodeBy = "git"
    on_record: Callable[[int], None] = lambda count: None

    def run(self) -> dict[str, Any]:
        """Collect; returns the summary. Started again after a stop, what is known is not asked again."""
        names = list(dict.fromkeys(self.repositories))
        if self.top_starred is not None:
            names += [name for name in most_starred(self.client, self.top_starred, self.language) if name not in names]
        for name in names:
            if name.count("/") != 1 or not all(name.split("/")):
                raise InputError(f"'{name}' is no repository: give OWNER/NAME")
        described = {"source": self.client.url, "code": self.code, "names": names}
        step = ShardedStep(self.out, described, [Path(name.replace("/", "__")) for name in names], self._collect)
        step.begin()
        step.run()
        summary = step.finish(_summarize)
        shutil.rmtree(scratch_of(self.out), ignore_errors=True)
        return summary

    def _collect(self, shard: Path, folder: Path) -> dict[str, Any]:
        name = shard.name.replace("__", "/", 1)
        calls = self.client.calls
        skipped: Counter[str] = Counter()
        with jsonl_writer(folder / "rejected" / f"{shard.name}.jsonl.zst") as rejected:

            def skip(what: str, reason: str) -> None:
                skipped[reason] += 1
                rejected.write({"id": what, "reason": reason})

            try:
                found = repository(self.client, name)
                changes = self._changes(found, shard.name, skip)
                kinds = write_records(changes, folder / "records", self.on_record, f"{shard.name}-")
            except Unavailable as status:
                skip(name, f"repository_unavailable_{status}")
                kinds = {}
        shutil.rmtree(scratch_of(self.out) / "clones" / shard.name, ignore_errors=True)
        return {"name": name, "kinds": kinds, "skipped": skipped, "calls": self.client.calls - calls}

    def _changes(self, found: Repository, shard: str, skip: Callable[[str, str], None]) -> Iterator[Change]:
        pages = merged_pull_requests(self.client, *found.name.split("/"))
        talks = (talk for page in pages for talk in page)
        if self.code == "api":
            yield from self._by_api(found, talks, skip)
            return
        try:
            clone = RemoteClone(found.clone_url, scratch_of(self.out) / "clones" / shard)
        except CannotClone as error:
            raise InputError(
                f"{found.clone_url} cannot be cloned ({error}): start the command again, or give --code api"
            ) from None
        yield from self._by_git(found, clone, talks, skip)

    def _by_git(
        self, found: Repository, clone: RemoteClone, talks: Iterator[Talk], skip: Callable[[str, str], None]
    ) -> Iterator[Change]:
        every = list(talks)  # their heads are fetched together; the code, which is what is large, comes bit by bit
        clone.fetch_pull_heads(talk.number for talk in every)
        source = GitSource(clone.reader)
        source.repository = found.name
        rest = iter(every)
        try:
            while some := list(islice(rest, _PULL_REQUESTS_PER_FETCH)):
                planned = [(talk, _planned(talk, source)) for talk in some]
                clone.fetch_contents({blob for _, plan in planned if plan for blob in source.blob_ids(plan)})
                for talk, plan in planned:
                    yield from _record(found, talk, plan, source.record, skip)
        finally:
            source.git.close()

    def _by_api(self, found: Repository, talks: Iterator[Talk], skip: Callable[[str, str], None]) -> Iterator[Change]:
        code = ApiCode(self.client, found.name)
        for talk in talks:
            plan = PullRequest("squash", talk.number, talk.title, talk.body, "", talk.landed or "", talk.head)
            yield from _record(found, talk, plan, code.record, skip)


def scratch_of(out: Path) -> Path:
    """Where answers and clones lie until everything is collected."""
    return out.absolute().with_name(f"{out.name}.scratch")


def cache_of(out: Path) -> ResponseCache:
    """The answers that a collection into `out` has had."""
    return ResponseCache(scratch_of(out) / "answers")


def _planned(talk: Talk, source: GitSource) -> PullRequest | None:
    """What the clone is to be asked, None where it lacks the commit that the pull request became."""
    graph = source.graph
    if talk.landed is None or not graph.parents.get(talk.landed):
        return None
    first, *others = graph.parents[talk.landed]
    head = source.pull_heads.get(talk.number)
    own = others[0] if others else head  # a branch may have gone on after it was merged
    return PullRequest("merge" if others else "squash", talk.number, talk.title, talk.body, first, talk.landed, own)


def _record(
    found: Repository,
    talk: Talk,
    plan: PullRequest | None,
    record: Callable[[PullRequest], Change],
    skip: Callable[[str, str], None],
) -> Iterator[Change]:
    try:
        if plan is None:
            raise NotReplayable("code_is_gone")
        yield replace(record(plan), facts=found.facts, conversation=talk.conversation)
    except NotReplayable as reason:
        skip(f"{found.name}#{talk.number}", str(reason))


def _summarize(notes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    kinds: Counter[str] = sum((Counter(note["kinds"]) for note in notes), Counter())
    skipped: Counter[str] = sum((Counter(note["skipped"]) for note in notes), Counter())
    calls = sum(note["calls"] for note in notes)
    seen = kinds.total() + skipped.total()
    return {
        "repositories": len(notes),
        "pull_requests": seen,
        "records": kinds.total(),
        "kinds": dict(sorted(kinds.items())),
        "skipped": dict(sorted(skipped.items())),
        "api_calls": calls,
        "api_calls_per_pull_request": calls / seen if seen else 0.0,
    }
