"""What daVinci-Dev reports of a corpus: counts per filter, samples, tokens, lengths, languages, commits per change."""

from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from data_prep.changes.record import Change
from data_prep.corpus.length_histogram import LengthHistogram
from data_prep.samples.sample import Sample

_COUNTERS = ("rejected", "languages", "file_types", "commits_per_change")
_MOST_FILE_TYPES = 20


class Statistics:
    """Counts over records and samples; those of several shards add up (see `total`).

    `max_tokens` is the length above which a sample is too long; without a tokenizer no lengths are counted.
    """

    def __init__(self, max_tokens: int | None) -> None:
        self._max_tokens = max_tokens
        self._lengths: list[int] = []
        self._counts = {name: Counter[str]() for name in _COUNTERS}
        self._records = self._changes = self._samples = self._tokens = 0

    def reject(self, reason: str) -> None:
        """Count a record that is left out."""
        self._records += 1
        self._counts["rejected"][reason] += 1

    def measure(self, tokens: int) -> None:
        """Count the length of a sample, also of one that is then left out as too long."""
        self._lengths.append(tokens)

    def keep(self, change: Change, samples: list[Sample]) -> None:
        """Count a record and the samples that it became."""
        self._records += 1
        self._changes += 1
        self._samples += len(samples)
        self._tokens += sum(sample.tokens or 0 for sample in samples)
        suffixes = {PurePosixPath(path).suffix.lower() or "(none)" for path in change.paths}
        self._counts["languages"][(change.facts and change.facts.language) or "unknown"] += 1
        self._counts["file_types"].update(suffixes)
        self._counts["commits_per_change"][_commits(len(change.own_commits))] += 1

    def as_json(self) -> dict[str, Any]:
        """Counts, ready for JSON."""
        lengths = np.array(self._lengths, np.int64)
        return {
            "records": self._records,
            "changes": self._changes,
            "samples": self._samples,
            "tokens": self._tokens,
            **{name: dict(sorted(counter.items())) for name, counter in self._counts.items()},
            "max_tokens": self._max_tokens,
            "measured": len(lengths),
            "too_long": int((lengths > self._max_tokens).sum()) if self._max_tokens else 0,
            "lengths": LengthHistogram(lengths).as_json(),
        }


def _commits(count: int) -> str:
    return str(count) if count < 10 else "10-19" if count < 20 else "20 and more"


def total(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The sum of several shards' statistics."""
    parts = list(parts)
    summed = {name: sum(part[name] for part in parts) for name in ("records", "changes", "samples", "tokens")}
    counters = {name: sum((Counter(part[name]) for part in parts), Counter()) for name in _COUNTERS}
    counters["file_types"] = Counter(dict(counters["file_types"].most_common(_MOST_FILE_TYPES)))
    measured, too_long = (sum(part[name] for part in parts) for name in ("measured", "too_long"))
    return {
        **summed,
        **{name: dict(sorted(counter.items())) for name, counter in counters.items()},
        "max_tokens": parts[0]["max_tokens"] if parts else None,
        "share_too_long": too_long / measured if measured else 0.0,
        "lengths": LengthHistogram.of_rows(row for part in parts for row in part["lengths"]).as_json(),
    }
