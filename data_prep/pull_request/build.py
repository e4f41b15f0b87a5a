"""The two steps a user runs: collect changes from a source, build samples from changes. Each makes one directory.

DIR/records/*.jsonl.zst or DIR/samples/*.jsonl.zst, DIR/rejected/*.jsonl.zst (what was dropped, and why), and
DIR/summary.json (counts). The directory appears by rename, complete; a killed build goes on where it was.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from data_prep.corpus.tokenizers import load_tokenizer, tokenizer_file, tokenizer_fingerprint
from data_prep.corpus.tokenizers.encoder import Encoder, fastest_exact
from data_prep.errors import InputError
from data_prep.files import JsonlWriter, jsonl_writer, new_directory, read_json, read_jsonl, write_json
from data_prep.pull_request.contents import Rejected
from data_prep.pull_request.forms import FORMS, samples_of
from data_prep.pull_request.record import Change
from data_prep.pull_request.statistics import Statistics, total
from data_prep.sample import Sample
from data_prep.shards import ShardedStep, Work, shards_in
from data_prep.sources.git import GitSource

FormName = Literal["python", "general", "factorised"]
RECORDS_PER_SHARD = 1000
MAX_TOKENS = 32_768  # daVinci-Dev, section 3.1


def collect_git(repository: Path, out: Path, on_record: Callable[[int], None] = lambda count: None) -> dict[str, Any]:
    """Write every change of a clone as a record; returns the summary."""
    source = GitSource(repository)
    with new_directory(out) as part, jsonl_writer(part / "rejected" / "00000.jsonl.zst") as rejected:
        source.on_skip = lambda name, reason: rejected.write({"id": name, "reason": reason})
        kinds = write_records(source.changes(), part / "records", on_record)
        summary = {
            "repository": source.repository,
            "records": sum(kinds.values()),
            "kinds": dict(sorted(kinds.items())),
            "skipped": dict(sorted(source.skipped.items())),
        }
        write_json(part / "summary.json", summary)
    return summary


def write_records(
    changes: Iterator[Change], folder: Path, on_record: Callable[[int], None], prefix: str = ""
) -> dict[str, int]:
    """Write changes as shards of records; returns how many there are of each kind. One empty shard stands for none."""
    kinds: dict[str, int] = {}
    number = 0
    while (first := next(changes, None)) is not None or number == 0:
        with jsonl_writer(folder / f"{prefix}{number:05d}.jsonl.zst") as records:
            for change in chain([] if first is None else [first], islice(changes, RECORDS_PER_SHARD - 1)):
                kinds[change.kind] = kinds.get(change.kind, 0) + 1
                records.write(change.to_json())
                on_record(1)
        number += 1
    return kinds


@dataclass(frozen=True)
class BuildJob:
    """Records to samples. Samples longer than `max_tokens` are left out; without a tokenizer none is."""

    records: Path
    form: FormName
    tokenizer: Path | None = None
    max_tokens: int = MAX_TOKENS
    pseudonyms: bool = True

    def step(self, out: Path) -> ShardedStep:
        """The work, shard by shard. Raises InputError on bad input."""
        if self.max_tokens < 1:
            raise InputError(f"--max-tokens is {self.max_tokens}; it must be at least 1")
        fingerprint = tokenizer_fingerprint(tokenizer_file(self.tokenizer)) if self.tokenizer else None
        shards = shards_in(self.records, "records", "davinci data collect")
        described = {
            "records": str(self.records.absolute()),
            "sizes": [shard.stat().st_size for shard in shards],
            "form": self.form,
            "tokenizer": fingerprint,
            "max_tokens": self.max_tokens,
            "pseudonyms": self.pseudonyms,
        }
        return ShardedStep(out, described, shards, self._open)

    @contextmanager
    def _open(self, rank: int, tasks: int) -> Iterator[Work]:
        encoder = fastest_exact(load_tokenizer(self.tokenizer)[0]) if self.tokenizer else None
        yield lambda shard, folder: self._build_shard(shard, folder, encoder)

    def _build_shard(self, shard: Path, folder: Path, encoder: Encoder | None) -> dict[str, Any]:
        """Samples of one shard of records; returns its statistics."""
        statistics = Statistics(self.max_tokens if encoder else None)
        with (
            jsonl_writer(folder / "samples" / shard.name) as samples,
            jsonl_writer(folder / "rejected" / shard.name) as rejected,
        ):
            for change in read_changes(shard):
                self._build(change, encoder, statistics, samples, rejected)
        return statistics.as_json()

    def _build(
        self,
        change: Change,
        encoder: Encoder | None,
        statistics: Statistics,
        samples: JsonlWriter,
        rejected: JsonlWriter,
    ) -> None:
        try:
            made = samples_of(change, FORMS[self.form], self.pseudonyms)
            if encoder is not None:
                made = self._measured(made, encoder, statistics)
        except Rejected as reason:
            statistics.reject(str(reason))
            rejected.write({"id": change.id, "reason": str(reason)})
            return
        statistics.keep(change, made)
        for sample in made:
            samples.write(sample.to_json())

    def _measured(self, samples: list[Sample], encoder: Encoder, statistics: Statistics) -> list[Sample]:
        """The samples with their lengths. Raises Rejected (too_long) when one is longer than allowed."""
        _, lengths = encoder.encode([sample.text for sample in samples])
        for length in lengths.tolist():
            statistics.measure(length)
        if lengths.max() > self.max_tokens:
            raise Rejected("too_long")
        return [replace(sample, tokens=length) for sample, length in zip(samples, lengths.tolist(), strict=True)]

    def summarize(self, notes: list[dict[str, Any]]) -> dict[str, Any]:
        """What the summary says of all shards, and of the collection that they come from."""
        source = self.records / "summary.json"
        collected = read_json(source) if source.exists() else {}
        return {"form": self.form, **total(notes), "collected": collected}


def read_changes(shard: Path) -> Iterator[Change]:
    """Records of a shard. Raises InputError, with the place, for one that is none of ours."""
    for number, record in enumerate(read_jsonl(shard), 1):
        try:
            yield Change.from_json(record)
        except InputError as error:
            raise InputError(f"{shard}, line {number}: {error}") from None
