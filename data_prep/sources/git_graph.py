"""Which commits a branch had when: the graph of a history, read once."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass


class NotReplayable(Exception):
    """A change that is skipped; the message is the reason's name."""


@dataclass(frozen=True)
class Chain:
    """The commits of a pull request, oldest first, and its base; `merges` brought the target branch in."""

    base: str
    commits: tuple[str, ...]
    merges: frozenset[str]


class CommitGraph:
    """Parents of every commit, and the order in which the main line (first parents from `tip` back) took them in."""

    def __init__(self, parents: Iterable[tuple[str, tuple[str, ...]]], tip: str) -> None:
        self.parents = dict(parents)
        self.main_line = list(self._first_parents(tip))[::-1]
        self._taken_in: dict[str, int] = {}
        for position, commit in enumerate(self.main_line):
            self._flood(commit, position)

    def _first_parents(self, commit: str) -> Iterator[str]:
        while commit in self.parents:
            yield commit
            commit = self.parents[commit][0] if self.parents[commit] else ""

    def _flood(self, commit: str, position: int) -> None:
        pending = [commit]
        while pending:
            at = pending.pop()
            if at not in self._taken_in and at in self.parents:  # a shallow clone ends somewhere
                self._taken_in[at] = position
                pending += self.parents[at]

    def on_main_line(self, commit: str) -> bool:
        """Whether the main line itself holds a commit."""
        position = self._taken_in.get(commit)
        return position is not None and self.main_line[position] == commit

    def has_landed(self, commit: str) -> bool:
        """Whether the main line has a commit, itself or by a merge."""
        return commit in self._taken_in

    def landed_at(self, commit: str) -> int:
        """The place on the main line at which it took a commit in."""
        return self._taken_in[commit]

    def chain(self, target: str, head: str) -> Chain:
        """The commits from `head` back to what the target branch had when it was at `target`.

        Raises NotReplayable where they are no chain but for merges of the target branch.
        """
        had = self._had(target)
        commits: list[str] = []
        merges = set()
        at = head
        while not had(at):
            first, *others = self._parents_of(at)
            if others:
                if len(others) > 1 or not had(others[0]):
                    raise NotReplayable("merge_inside")
                if had(first):
                    raise NotReplayable("not_a_chain")  # the target's own branch, with the change merged into it
                merges.add(at)
            commits.append(at)
            at = first
        if not commits:
            raise NotReplayable("no_commits")
        return Chain(at, tuple(reversed(commits)), frozenset(merges))

    def _parents_of(self, commit: str) -> tuple[str, ...]:
        if commit not in self.parents:
            raise NotReplayable("history_is_cut_off")
        if not self.parents[commit]:
            raise NotReplayable("root_commit")
        return self.parents[commit]

    def _had(self, target: str) -> Callable[[str], bool]:
        """Whether a branch at `target` had a commit. On the main line the order in which it took them in tells."""
        if self.on_main_line(target):
            limit = self._taken_in[target]
            return lambda commit: self._taken_in.get(commit, limit + 1) <= limit
        ancestors: set[str] = set()
        pending = [target]
        while pending:
            at = pending.pop()
            if at not in ancestors and at in self.parents:
                ancestors.add(at)
                pending += self.parents[at]
        return ancestors.__contains__
