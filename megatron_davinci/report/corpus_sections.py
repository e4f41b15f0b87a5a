"""The sections of a corpus's report. Torch-free."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from data_prep.corpus.length_histogram import LengthHistogram
from data_prep.io.files import read_jsonl
from data_prep.tokenize.masks import masked_text
from data_prep.tokenizers import load_tokenizer_of
from megatron_davinci.report.blocks import Bars, Cell, PageSection, Paragraph, ShownNumber, Table, Text
from megatron_davinci.report.corpus_data import CorpusData, Instance, LeakageReport
from megatron_davinci.report.numbers import number_text
from megatron_davinci.report.read_sections import evenly

_SAMPLES, _MOST_BARS, _MOST_INSTANCES = 5, 25, 20
_NEAR = 0.5  # of tau: below that score an instance shares chance words


def corpus_summary(data: CorpusData) -> PageSection:
    """How much there is."""
    rows: list[list[Cell]] = []
    for name, corpus in data.corpora.items():
        manifest, source = corpus.manifest, f"{name}.manifest.json"
        for key in ("documents", "tokens", "trained_tokens"):
            if isinstance(manifest.get(key), int):
                rows.append([f"{name}: {key.replace('_', ' ')}", _count(manifest[key], f"{source}: {key}")])
        rows.append([f"{name}: tokenizer", f"{corpus.tokenizer['kind']}, {corpus.tokenizer['fingerprint']}"])
    for name, found in data.summaries.items():
        source = f"{name}/summary.json"
        for key in ("records", "changes", "samples"):
            value = getattr(found, key)
            if value is not None:
                rows.append([f"{name}: {key}", _count(value, f"{source}: {key}")])
        if found.samples is not None:
            counted = found.tokens or not found.samples
            rows.append(
                [f"{name}: tokens", _count(found.tokens or 0, f"{source}: tokens") if counted else "not counted"]
            )
    for name, report in data.leakage.items():
        total = sum(benchmark.contaminated for benchmark in report.benchmarks)
        rows.append([f"{name}: contaminated instances", _count(total, f"{name}: contaminated, sum of benchmarks")])
    return PageSection("Summary", [Table(["", ""], rows)])


def corpus_sources(data: CorpusData) -> PageSection | None:
    """What samples are made of: kinds of changes, languages, types of files, commits."""
    blocks = [
        bars
        for name, found in data.summaries.items()
        for key in ("kinds", "languages", "file_types", "commits_per_change")
        if (bars := _bars(name, key, getattr(found, key))) is not None
    ]
    return PageSection("Sources and languages", blocks) if blocks else None


def corpus_lengths(data: CorpusData) -> PageSection | None:
    """How long documents are."""
    blocks = []
    for name, corpus in data.corpora.items():
        blocks.append(_lengths(name, f"{name}.idx", LengthHistogram(corpus.lengths).as_json()))
    for name, found in data.summaries.items():
        if found.lengths:
            rows = [{"from": (row.to + 1) // 2, **row.model_dump()} for row in found.lengths]
            blocks.append(_lengths(name, f"{name}/summary.json", rows))
    return PageSection("Lengths", blocks) if blocks else None


def corpus_rejected(data: CorpusData) -> PageSection | None:
    """What was left out, by reason."""
    blocks = [
        bars
        for name, found in data.summaries.items()
        for key in ("rejected", "skipped")
        if (bars := _bars(name, key, getattr(found, key))) is not None
    ]
    return PageSection("Left out, by reason", blocks) if blocks else None


def corpus_leakage(data: CorpusData) -> PageSection | None:
    """Benchmarks in the corpus: counts, the highest scores, and those that just miss tau."""
    blocks = [block for name, report in data.leakage.items() for block in _leakage(name, report)]
    return PageSection("Leakage of benchmarks", blocks) if blocks else None


def corpus_samples(data: CorpusData) -> PageSection | None:
    """A few texts to read."""
    texts = [*_texts_of_samples(data), *_texts_of_corpora(data)]
    if texts:
        return PageSection("Samples to read", texts)
    if data.corpora:
        return PageSection("Samples to read", [Paragraph("Ids are no text: give the tokenizer with --tokenizer.")])
    return None


def _leakage(name: str, report: LeakageReport) -> Iterable[Any]:
    rows: list[list[Cell]] = [
        [each.file, *(_count(getattr(each, key), f"{name}: {each.file}, {key}") for key in _COUNTS)]
        for each in report.benchmarks
    ]
    yield Paragraph(f"{report.n}-grams; an instance is contaminated from a score of {report.tau:g} on.")
    yield Table(["benchmark", "instances", "contaminated", "too short"], rows)
    scored = sorted((each for each in report.instances if each.span), key=lambda each: -each.score)
    yield from _instances(name, "highest scores", [each for each in scored if each.contaminated])
    near = [each for each in scored if not each.contaminated and each.score >= _NEAR * report.tau]
    yield from _instances(name, "near misses", near)


_COUNTS = ("instances", "contaminated", "too_short")


def _instances(name: str, title: str, found: list[Instance]) -> Iterable[Any]:
    for each in found[:_MOST_INSTANCES]:
        place = each.worst_document
        where = f"document {place.document} of {place.corpus}" if place else ""
        yield Text(f"{title}: {each.id}, score {each.score:.3f}, {where}", each.span.text if each.span else "")
    if len(found) > _MOST_INSTANCES:
        yield Paragraph(f"{len(found) - _MOST_INSTANCES:,} more {title} stand in {name}.")


def _texts_of_samples(data: CorpusData) -> Iterable[Text]:
    for name, directory in data.directories.items():
        shards = sorted((directory / "samples").glob("*.jsonl.zst"))
        for shard in (shards[number] for number in evenly(range(len(shards)), _SAMPLES)):
            for record in islice(read_jsonl(shard), -(-_SAMPLES // len(shards))):
                yield Text(f"{name}: {record.get('id')}", str(record.get("text", "")))


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
