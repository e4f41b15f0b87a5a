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
_LANGUAGES = {
    ".py": "Python", ".pyi": "Python", ".rs": "Rust", ".go": "Go", ".c": "C", ".h": "C", ".cc": "C++", ".cpp": "C++",
    ".hpp": "C++", ".cs": "C#", ".java": "Java", ".kt": "Kotlin", ".scala": "Scala", ".js": "JavaScript",
    ".jsx": "JavaScript", ".ts": "TypeScript", ".tsx": "TypeScript", ".rb": "Ruby", ".php": "PHP", ".swift": "Swift",
    ".lua": "Lua", ".pl": "Perl", ".r": "R", ".jl": "Julia", ".hs": "Haskell", ".ex": "Elixir", ".sh": "Shell",
}  # fmt: skip
_MOST_FILE_TYPES = 20


class Statistics:
    """Counts over records and samples; those of several shards add up (see `total`).

    `max_tokens` is the length above which a sample is too long; without a tokenizer no lengths are counted.
    """

    def __init__(self, max_tokens: int | None) -> None:
        self._max_tokens = max_tokens
        self._lengths: list[int] = []  # of the samples that stay
        self._measured = self._too_long = 0
        self._counts = {name: Counter[str]() for name in _COUNTERS}
        self._records = self._changes = self._samples = 0

    def reject(self, reason: str) -> None:
        """Count a record that is left out."""
        self._records += 1
        self._counts["rejected"][reason] += 1

    def measure(self, tokens: int) -> None:
        """Count a sample whose length is known, also one that is then left out as too long."""
        self._measured += 1
        self._too_long += self._max_tokens is not None and tokens > self._max_tokens

    def keep(self, change: Change, samples: list[Sample]) -> None:
        """Count a record and the samples that it became."""
        self._records += 1
        self._changes += 1
        self._samples += len(samples)
        self._lengths += [sample.tokens for sample in samples if sample.tokens is not None]
        suffixes = {PurePosixPath(path).suffix.lower() or "(none)" for path in change.paths}
        self._counts["languages"][(change.facts and change.facts.language) or _language_of(change.paths)] += 1
        self._counts["file_types"].update(suffixes)
        self._counts["commits_per_change"][_commits(len(change.own_commits))] += 1

    def as_json(self) -> dict[str, Any]:
        """Counts, ready for JSON."""
        lengths = np.array(self._lengths, np.int64)
        return {
            "records": self._records,
            "changes": self._changes,
            "samples": self._samples,
            "tokens": int(lengths.sum()),
            **{name: _in_order(counter) for name, counter in self._counts.items()},
            "max_tokens": self._max_tokens,
            "measured": self._measured,
            "too_long": self._too_long,
            "lengths": LengthHistogram(lengths).as_json(),
        }


def _commits(count: int) -> str:
    return str(count) if count < 10 else "10-19" if count < 20 else "20 and more"


def _in_order(counter: Counter[str]) -> dict[str, int]:
    """Counts of numbers by the number, others the most frequent first."""
    if all(name.split("-")[0].split(" ")[0].isdigit() for name in counter):
        return dict(sorted(counter.items(), key=lambda pair: int(pair[0].split("-")[0].split(" ")[0])))
    return dict(sorted(counter.items(), key=lambda pair: (-pair[1], pair[0])))


def _language_of(paths: Iterable[str]) -> str:
    """The language that most of the files are written in, by their endings, where the source tells none."""
    known = Counter(
        _LANGUAGES[ending] for path in paths if (ending := PurePosixPath(path).suffix.lower()) in _LANGUAGES
    )
    return next(iter(_in_order(known)), "unknown")


def total(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The sum of several shards' statistics."""
    parts = list(parts)
    summed = {name: sum(part[name] for part in parts) for name in ("records", "changes", "samples", "tokens")}
    counters = {name: sum((Counter(part[name]) for part in parts), Counter()) for name in _COUNTERS}
    counters["file_types"] = Counter(dict([*_in_order(counters["file_types"]).items()][:_MOST_FILE_TYPES]))
    counted = any(part["max_tokens"] is not None for part in parts)
    measured, too_long = (sum(part[name] for part in parts) for name in ("measured", "too_long"))
    return {
        **summed,
        "tokens": summed["tokens"] if counted else None,
        **{name: _in_order(counter) for name, counter in counters.items()},
        "max_tokens": parts[0]["max_tokens"] if parts else None,
        "share_too_long": too_long / measured if measured else None,
        "lengths": LengthHistogram.of_rows(row for part in parts for row in part["lengths"]).as_json(),
    }
