"""The sections of a corpus's report. Torch-free."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import numpy as np

from data_prep.corpus import Corpus
from data_prep.corpus.length_histogram import LengthHistogram
from data_prep.io.files import read_jsonl
from data_prep.samples.show import readable_text, sample_files
from data_prep.tokenize.masks import masked_text
from data_prep.tokenizers import load_tokenizer_of
from megatron_davinci.report.blocks import Bars, Cell, PageSection, Paragraph, ShownNumber, Table, Text
from megatron_davinci.report.corpus_data import (
    CorpusData,
    Instance,
    LeakageReport,
    SamplesSummary,
    WorstDocument,
    WorstText,
)
from megatron_davinci.report.numbers import number_text
from megatron_davinci.report.read_sections import evenly

_TOTALS = (
    "records", "trajectories", "changes", "samples", "candidates", "tasks", "rollouts", "replies",
    "untrained_replies", "kept", "broken_records",
)  # fmt: skip
_SAMPLES, _MOST_BARS, _MOST_INSTANCES = 5, 25, 20
_NEAR = 0.5  # of tau: below that score an instance shares chance words


def corpus_summary(data: CorpusData) -> PageSection | None:
    """How much there is."""
    rows = [row for name, corpus in data.corpora.items() for row in _of_corpus(name, corpus)]
    rows += [row for name, found in data.summaries.items() for row in _of_samples(name, found)]
    for name, report in data.leakage.items():
        total = sum(benchmark.contaminated for benchmark in report.benchmarks)
        rows.append([f"{name}: contaminated instances", _count(total, f"{name}: contaminated, all benchmarks")])
    return PageSection("Summary", [Table(["", ""], rows)]) if rows else None


def _of_corpus(name: str, corpus: Corpus) -> Iterable[list[Cell]]:
    yield [f"{name}: documents", _count(len(corpus), f"{name}.idx: documents")]
    yield [f"{name}: tokens", _count(int(corpus.lengths.sum()), f"{name}.idx: tokens")]
    if corpus.loss_mask is not None:
        trained = int(np.count_nonzero(corpus.loss_mask))
        yield [f"{name}: tokens that are trained", _count(trained, f"{name}.loss_mask.bin: tokens")]
    yield [f"{name}: tokenizer", f"{corpus.tokenizer['kind']}, {corpus.tokenizer['fingerprint']}"]


def _of_samples(name: str, found: SamplesSummary) -> Iterable[list[Cell]]:
    source = f"{name}/summary.json"
    for key in _TOTALS:
        if isinstance(value := getattr(found, key), int):
            yield [f"{name}: {key}", _count(value, f"{source}: {key}")]
    if found.samples is not None:
        tokens = found.tokens if isinstance(found.tokens, int) else 0
        counted = tokens or not found.samples
        yield [f"{name}: tokens", _count(tokens, f"{source}: tokens") if counted else "not counted"]
    if found.max_tokens is not None and found.share_too_long is not None:
        yield [f"{name}: longest sample allowed, tokens", _count(found.max_tokens, f"{source}: max_tokens")]
        share = ShownNumber(
            found.share_too_long, number_text(found.share_too_long, "share"), f"{source}: share_too_long"
        )
        yield [f"{name}: samples that were longer", share]


def corpus_sources(data: CorpusData) -> PageSection | None:
    """What samples are made of: kinds of changes, languages, types of files, commits."""
    blocks = [
        bars
        for name, found in data.summaries.items()
        for key, counts in (
            ("kinds", {**found.kinds, **(found.collected.kinds if found.collected else {})}),
            ("languages", found.languages),
            ("file_types", found.file_types),
            ("commits_per_change", found.commits_per_change),
            ("rollouts", found.rollouts if isinstance(found.rollouts, dict) else {}),
            ("tokens", found.tokens if isinstance(found.tokens, dict) else {}),
            ("pythons", found.pythons),
            ("flags", found.flags),
        )
        if (bars := _bars(name, key, counts)) is not None
    ]
    return PageSection("Sources and languages", blocks) if blocks else None


def corpus_lengths(data: CorpusData) -> PageSection | None:
    """How long documents are."""
    blocks = []
    for name, corpus in data.corpora.items():
        blocks.append(_lengths(name, f"{name}.idx", LengthHistogram(corpus.lengths).as_json()))
    for name, found in data.summaries.items():
        if found.lengths:
            rows = [row.model_dump(by_alias=True) for row in found.lengths]
            blocks.append(_lengths(name, f"{name}/summary.json", rows))
    return PageSection("Lengths", blocks) if blocks else None


def corpus_rejected(data: CorpusData) -> PageSection | None:
    """What was left out, by reason."""
    blocks = [
        bars
        for name, found in data.summaries.items()
        for key, counts in (
            ("rejected", found.rejected),
            ("dropped", found.dropped),
            ("skipped", {**found.skipped, **(found.collected.skipped if found.collected else {})}),
        )
        if (bars := _bars(name, key, counts)) is not None
    ]
    return PageSection("Left out, by reason", blocks) if blocks else None


def corpus_leakage(data: CorpusData) -> PageSection | None:
    """Benchmarks in the corpus: counts, the highest scores, and those that just miss tau."""
    blocks = [block for name, report in data.leakage.items() for block in _leakage(name, report)]
    return PageSection("Leakage of benchmarks", blocks) if blocks else None


def corpus_samples(data: CorpusData) -> PageSection | None:
    """A few texts to read."""
    texts: list[Any] = [*_texts_of_samples(data), *_texts_of_corpora(data)]
    if data.corpora and data.tokenizer is None:
        names = ", ".join(data.corpora)
        texts.append(Paragraph(f"{names}: ids are no text; documents are shown with --tokenizer DIRECTORY."))
    return PageSection("Samples to read", texts) if texts else None


def _leakage(name: str, report: LeakageReport) -> Iterable[Any]:
    rows: list[list[Cell]] = [
        [each.file, *(_count(getattr(each, key), f"{name}: {each.file}, {key}") for key in _COUNTS)]
        for each in report.benchmarks
    ]
    yield Paragraph(f"{report.n}-grams; an instance is contaminated from a score of {report.tau:g} on.")
    yield Table(["benchmark", "instances", "contaminated", "too short"], rows)
    scored = sorted(report.instances, key=lambda each: -each.score)
    yield from _instances(name, "highest scores", [each for each in scored if each.contaminated])
    near = [each for each in scored if not each.contaminated and each.score >= _NEAR * report.tau]
    yield from _instances(name, "near misses", near)


_COUNTS = ("instances", "contaminated", "too_short")


def _instances(name: str, title: str, found: list[Instance]) -> Iterable[Any]:
    for each in found[:_MOST_INSTANCES]:
        place = each.worst_document
        where = "no document" if place is None else _place(place)
        yield Text(f"{title}: {each.id}, score {each.score:.3f}, {where}", each.span.text if each.span else "no text")
    if len(found) > _MOST_INSTANCES:
        yield Paragraph(f"{len(found) - _MOST_INSTANCES:,} more {title} stand in {name}.")


def _place(place: WorstDocument | WorstText) -> str:
    if isinstance(place, WorstText):
        return f"record {place.record} of {place.file}"
    return f"document {place.document} of {place.corpus}"


def _texts_of_samples(data: CorpusData) -> Iterable[Text]:
    for name, directory in data.directories.items():
        shards = sample_files(directory)
        for shard in (shards[number] for number in evenly(range(len(shards)), _SAMPLES)):
            for record in islice(read_jsonl(shard), -(-_SAMPLES // len(shards))):
                yield Text(f"{name}: {record.get('id')}", readable_text(record))


def _texts_of_corpora(data: CorpusData) -> Iterable[Text]:
    if data.tokenizer is None:
        return
    for name, corpus in data.corpora.items():
        decoder = load_tokenizer_of(corpus.tokenizer, data.tokenizer)
        for number in evenly(range(len(corpus)), _SAMPLES):
            title = f"{name}: document {number}, {corpus.lengths[number]:,} tokens"
            yield Text(title, masked_text(corpus, number, decoder.decode))


def _lengths(name: str, source: str, rows: Iterable[Mapping[str, int]]) -> Bars:
    return Bars(
        f"{name}: documents by length in tokens",
        [
            (
                f"{row['from']:,} to {row['to']:,}",
                _count(row["documents"], f"{source}: documents of {row['from']} tokens or more"),
            )
            for row in rows
        ],
    )


def _bars(name: str, key: str, counts: Mapping[str, int]) -> Bars | None:
    """Most first; what is left over is told together."""
    ordered = sorted(counts.items(), key=lambda entry: -entry[1])
    rows = [(label, _count(count, f"{name}/summary.json: {key} of {label}")) for label, count in ordered[:_MOST_BARS]]
    rest = ordered[_MOST_BARS:]
    if rest:
        total = sum(count for _, count in rest)
        rows.append((f"{len(rest)} others", _count(total, f"{name}/summary.json: {key} of {len(rest)} others")))
    return Bars(f"{name}: {key.replace('_', ' ')}", rows) if rows else None


def _count(value: int, source: str) -> ShownNumber:
    return ShownNumber(value, number_text(value, ""), source)
