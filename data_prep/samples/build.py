"""Samples from recorded changes: DIR/samples/*.jsonl.zst, DIR/rejected/*.jsonl.zst with reasons, DIR/summary.json.

The directory appears by rename, complete. A killed build resumes where it was.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.changes.record import Change
from data_prep.changes.shards import read_changes
from data_prep.io.errors import DAMAGE, InputError, printable
from data_prep.io.files import JsonlWriter, jsonl_writer, read_json
from data_prep.io.shards import ShardedStep, ShardWork, shards_in
from data_prep.reconstruct.contents import Rejected
from data_prep.samples.dataset_card import write_dataset_card
from data_prep.samples.formats import SAMPLE_FORMATS, samples_of
from data_prep.samples.sample import Sample
from data_prep.samples.statistics import Statistics, total
from data_prep.tokenizers import load_tokenizer, tokenizer_file, tokenizer_fingerprint
from data_prep.tokenizers.encoder import Encoder, fastest_exact

MAX_SAMPLE_TOKENS = 32_768  # daVinci-Dev, section 3.1


@dataclass(frozen=True)
class BuildJob:
    """Records to samples in a format of `SAMPLE_FORMATS`.

    Samples longer than `max_tokens` are left out; without a tokenizer none is.
    """

    records: Path
    format: str
    tokenizer: Path | None = None
    max_tokens: int = MAX_SAMPLE_TOKENS
    pseudonyms: bool = True

    def step(self, out: Path) -> ShardedStep:
        """The work, shard by shard. Raises InputError on bad input."""
        SAMPLE_FORMATS.check(self.format)
        if self.max_tokens < 1:
            raise InputError(f"--max-tokens is {self.max_tokens}; it must be at least 1")
        fingerprint = tokenizer_fingerprint(tokenizer_file(self.tokenizer)) if self.tokenizer else None
        shards = shards_in(self.records, "records", "davinci data collect")
        described = {
            "records": str(self.records.absolute()),
            "sizes": [shard.stat().st_size for shard in shards],
            "format": self.format,
            "tokenizer": fingerprint,
            "max_tokens": self.max_tokens,
            "pseudonyms": self.pseudonyms,
        }
        return ShardedStep(out, described, shards, self._open, self._describe)

    def _describe(self, folder: Path, notes: list[dict[str, Any]]) -> dict[str, Any]:
        write_dataset_card(folder, {"format": self.format, **total(notes)}, self.pseudonyms)
        return {}

    @contextmanager
    def _open(self, rank: int, tasks: int) -> Iterator[ShardWork]:
        encoder = fastest_exact(load_tokenizer(self.tokenizer)[0]) if self.tokenizer else None
        yield lambda shard, folder: self._build_shard(shard, folder, encoder)

    def _build_shard(self, shard: Path, folder: Path, encoder: Encoder | None) -> dict[str, Any]:
        """Samples of one shard of records; returns its statistics."""
        statistics = Statistics(self.max_tokens if encoder else None)
        with (
            jsonl_writer(folder / "samples" / shard.name) as samples,
            jsonl_writer(folder / "rejected" / shard.name) as rejected,
        ):

            def reject(name: str) -> None:
                statistics.reject("broken_record")
                rejected.write({"id": name, "reason": "broken_record"})

            for change in read_changes(shard, reject):
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
            made = samples_of(change, SAMPLE_FORMATS.get(self.format), self.pseudonyms)
            if encoder is not None:
                made = self._measured(made, encoder, statistics)
        except (Rejected, *DAMAGE) as error:  # the latter: a field of the record holds something else than it should
            reason = str(error) if isinstance(error, Rejected) else "broken_record"
            statistics.reject(reason)
            rejected.write({"id": printable(change.id, 300), "reason": reason})
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
        counted = collected.get("records") if isinstance(collected, dict) else None
        found = sum(note["records"] for note in notes)
        if counted not in (None, found):
            raise InputError(
                f"{source} counts {counted} records, {self.records} holds {found}: collect them "
                "again, or remove that summary and start the same command again, which keeps what it has built"
            )
        if not isinstance(collected, dict):
            raise InputError(f"{source} is no summary of records: remove it, or collect them again")
        return {"format": self.format, **total(notes), "collected": collected}
