"""Which pull requests a history took in, and how: by what commits say, by pull requests' heads, by patches."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from data_prep.sources.git_graph import CommitGraph, NotReplayable
from data_prep.sources.git_log import LogEntry

Kind = Literal["merge", "squash", "rebase", "commit"]

_MERGE_SUBJECT = re.compile(r"Merge pull request #(\d+) from \S+")
_NUMBERED_SUBJECT = re.compile(r"(?P<title>.*\S)\s*\(#(?P<number>\d+)\)$")
_PLAIN_MERGE = re.compile(r"Merge (?:(?:remote-tracking )?branch|commit|tag|remote) ")
_MOST_DIGITS = 9  # a host counts in 32 bits
NOT_LANDED = "not_landed_as_far_as_the_history_shows"


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
    landed_at: str = ""


class NoNumber(Exception):
    """A commit whose number is no pull request's; the message is the reason's name."""


class Landings:
    """The pull requests of one history. `skip` hears of each that is none, by name and reason."""

    def __init__(self, graph: CommitGraph, pull_heads: dict[int, str], skip: Callable[[str, str], None]) -> None:
        self._graph, self._pull_heads, self._skip = graph, pull_heads, skip
        self._numbers_of: defaultdict[str, list[int]] = defaultdict(list)
        for number, head in pull_heads.items():
            self._numbers_of[head].append(number)
        self.refused: set[str] = set()
        self._alike: defaultdict[str, list[str]] = defaultdict(list)  # commits of the main line by time, by subject
        self._entries: dict[str, LogEntry] = {}

    def planned(self, history: Iterable[LogEntry]) -> dict[int, PullRequest]:
        """One entry per number, oldest first. A fork's history may bring numbers of its own: the main line's win."""
        chosen: dict[int, tuple[bool, PullRequest]] = {}
        for entry in history:
            on_main_line = self._graph.on_main_line(entry.sha)
            if on_main_line and len(entry.parents) == 1:
                self._remember(entry)
            try:
                found = self._pull_request(entry, on_main_line)
            except NoNumber as reason:
                self.refused.add(entry.sha)
                self._skip(f"@{entry.sha}", str(reason))
                continue
            if found is None or found.number is None:
                continue
            if found.number in chosen:
                self._skip(f"#{found.number}", "number_seen_before")
            if found.number not in chosen or (on_main_line and not chosen[found.number][0]):
                chosen[found.number] = (on_main_line, found)
        return {number: planned for number, (_, planned) in chosen.items()}

    def _remember(self, entry: LogEntry) -> None:
        self._entries[entry.sha] = entry
        for trait in _traits(entry):
            self._alike[trait].append(entry.sha)

    def _pull_request(self, entry: LogEntry, on_main_line: bool) -> PullRequest | None:
        """What `entry` brought in, where that was a pull request. Raises NoNumber."""
        if len(entry.parents) == 2:
            return self._merged(entry, on_main_line)
        squash = _NUMBERED_SUBJECT.match(entry.subject)
        if squash is None or len(entry.parents) != 1:
            return None
        number = _number(squash["number"])
        if self._pull_heads and number not in self._pull_heads:
            self._skip(f"@{entry.sha}", "number_is_no_pull_request")  # of an issue, or of another repository
            return None
        return PullRequest(
            "squash", number, squash["title"], entry.body, entry.parents[0], entry.sha, self._pull_heads.get(number),
            entry.landed_at,
        )  # fmt: skip

    def _merged(self, entry: LogEntry, on_main_line: bool) -> PullRequest | None:
        """A merge commit: by its subject, whichever of the host's forms it has, or by the head that it took in."""
        target, head = entry.parents
        numbers = self._numbers_of.get(head, [])
        first, _, rest = entry.body.partition("\n")
        by_host, numbered = _MERGE_SUBJECT.match(entry.subject), _NUMBERED_SUBJECT.match(entry.subject)
        said = _number(by_host[1]) if by_host else _number(numbered["number"]) if numbered else None
        title, body = first, rest.strip()
        if numbered and not by_host:
            title, body = numbered["title"], entry.body
            known = said in numbers or (on_main_line and (not self._pull_heads or said in self._pull_heads))
            said = said if known else None
        if said is None and not _PLAIN_MERGE.match(entry.subject):
            title, body = entry.subject, entry.body
        if not on_main_line and said is None:
            return None  # somebody's branch took another one in
        number = said if said in numbers or not numbers else max(numbers)
        if number is None:
            return None
        return PullRequest("merge", number, title, body, target, entry.sha, head, entry.landed_at)

    def unnamed(
        self,
        planned: dict[int, PullRequest],
        outside: Mapping[str, LogEntry],
        patch_ids: Callable[[list[str]], dict[str, str | None]],
    ) -> Iterator[tuple[int, PullRequest | str]]:
        """Every head that no commit names: the pull request whose patches are all on the main line, else the reason.

        `outside` are the commits that the main line has not, `patch_ids` gives git's identities of commits' patches.
        """
        taken = {each.landed for each in planned.values()}
        chains: dict[int, tuple[list[LogEntry], list[list[str]]]] = {}
        for number in sorted(self._pull_heads.keys() - planned.keys()):
            reason = self._why_no_chain(number, planned)
            entries = self._own_commits(self._pull_heads[number], outside) if reason is None else []
            alike = [self._like(entry) for entry in entries]
            if alike and all(alike):
                chains[number] = (entries, alike)
            else:
                yield number, reason or NOT_LANDED
        own = {entry.sha for entries, _ in chains.values() for entry in entries}
        like = {sha for _, alike in chains.values() for candidates in alike for sha in candidates}
        ids = patch_ids(sorted(own | like)) if chains else {}
        for number, (entries, alike) in chains.items():
            yield number, self._rebased(number, entries, alike, ids, taken)

    def _own_commits(self, head: str, outside: Mapping[str, LogEntry]) -> list[LogEntry]:
        """The commits up to a head that the main line has not, without merges of it; none where they are no chain."""
        try:
            chain = self._graph.chain(self._graph.main_line[-1], head)
        except NotReplayable:
            return []
        return [outside[commit] for commit in chain.commits if commit not in chain.merges]

    def _why_no_chain(self, number: int, planned: dict[int, PullRequest]) -> str | None:
        head = self._pull_heads[number]
        if head not in self._graph.parents:
            return "head_is_missing"
        if any(other in planned for other in self._numbers_of[head]):
            return "head_of_another_pull_request"
        if self._graph.on_main_line(head):
            return "head_is_on_the_main_line"  # put there without a merge, or never ahead of it
        return "landed_inside_another_branch" if self._graph.has_landed(head) else None

    def _like(self, entry: LogEntry) -> list[str]:
        """Commits of the main line that may be this one put elsewhere: a rebase keeps the author's time, or words."""
        return list(dict.fromkeys(sha for trait in _traits(entry) for sha in self._alike.get(trait, ())))

    def _rebased(
        self, number: int, entries: list[LogEntry], alike: list[list[str]], ids: dict[str, str | None], taken: set[str]
    ) -> PullRequest | str:
        found: list[str] = []
        for entry, candidates in zip(entries, alike, strict=True):
            if ids.get(entry.sha, "") is None:
                return "contents_missing"
            same = [
                sha for sha in candidates if entry.sha in ids and ids.get(sha) == ids[entry.sha] and sha not in found
            ]
            if not same:
                return "contents_missing" if any(ids.get(sha, "") is None for sha in candidates) else NOT_LANDED
            found.append(same[0])
        if not taken.isdisjoint(found):
            return "landed_as_another_pull_request"
        taken.update(found)
        order = sorted(found, key=self._graph.landed_at)
        target, landed = self._graph.parents[order[0]][0], order[-1]
        first, *others = entries
        body = first.body if not others else ""
        return PullRequest(
            "rebase", number, first.subject, body, target, landed, entries[-1].sha, self._entries[landed].landed_at
        )


def _traits(entry: LogEntry) -> tuple[str, str]:
    numbered = _NUMBERED_SUBJECT.match(entry.subject)
    return f"at {entry.authored_at} {entry.author}", f"subject {numbered['title'] if numbered else entry.subject}"


def is_pull_number(digits: str) -> bool:
    """Whether digits are the number of a pull request, as a host would write it."""
    return digits.isdecimal() and digits.isascii() and len(digits) <= _MOST_DIGITS and str(int(digits)) == digits


def _number(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise NoNumber("number_too_large")
    return int(digits)
