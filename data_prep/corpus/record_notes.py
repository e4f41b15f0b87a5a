"""What a corpus's manifest says of the records that were left out or changed on the way into it."""

from collections.abc import Iterable
from typing import Any

from data_prep.io.errors import InputError, printable

MAX_EXAMPLES = 20  # of records that a manifest names
COUNTERS = {"broken": "broken_records", "untrained": "untrained_conversations", "changed": "changed_turns"}


class RecordNotes:
    """Counts by kind, and the first records of each kind by name."""

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        state = state or {}
        self._counts = {counter: _count(state.get(counter, 0)) for counter in COUNTERS.values()}
        named = state.get("examples", {})
        self._examples: dict[str, list[str]] = {kind: _texts(named, kind) for kind in COUNTERS}

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
            total.add(kind, _texts(provenance.get("examples", {}), kind), _count(provenance.get(counter, 0)))
    return total


def _count(value: Any) -> int:
    if type(value) is not int:
        raise InputError(
            f"a manifest counts {printable(value, 100)!r} records, which is no number: write the corpus again"
        )
    return value


def _texts(named: Any, kind: str) -> list[str]:
    found = named.get(kind, []) if isinstance(named, dict) else []
    return [str(each) for each in found] if isinstance(found, list) else []
