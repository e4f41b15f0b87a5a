"""What a corpus's manifest says of the records that were left out or changed on the way into it."""

from collections.abc import Iterable
from typing import Any

MAX_EXAMPLES = 20  # of records that a manifest names
COUNTERS = {"broken": "broken_records", "untrained": "untrained_conversations", "changed": "changed_turns"}


class RecordNotes:
    """Counts by kind, and the first records of each kind by name."""

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        state = state or {}
        self._counts = {counter: state.get(counter, 0) for counter in COUNTERS.values()}
        named = state.get("examples", {})
        self._examples: dict[str, list[str]] = {kind: list(named.get(kind, [])) for kind in COUNTERS}

    def add(self, kind: str, examples: list[str], count: int | None = None) -> None:
        """Note records of a kind; `count` where there are more of them than are named."""
        self._counts[COUNTERS[kind]] += len(examples) if count is None else count
        self._examples[kind] += examples[: MAX_EXAMPLES - len(self._examples[kind])]

    def first(self, kind: str) -> str | None:
        """The first record of a kind."""
        return next(iter(self._examples[kind]), None)

    def as_dict(self) -> dict[str, Any]:
        """The notes in the form of a manifest's provenance."""
        return {**self._counts, "examples": {kind: list(named) for kind, named in self._examples.items()}}


def added_up(provenances: Iterable[dict[str, Any]]) -> RecordNotes:
    """The notes of several corpora together; one that was adopted has none."""
    total = RecordNotes()
    for provenance in provenances:
        for kind, counter in COUNTERS.items():
            total.add(kind, provenance.get("examples", {}).get(kind, []), provenance.get(counter, 0))
    return total
