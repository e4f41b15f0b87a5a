"""13-gram leakage of benchmarks into corpora: exact scores, the worst document, and what to do about it.

daVinci-Dev's appendix, after XCoder: G_e is the set of n-grams of an instance's reference text, the score of an
instance is the maximum over documents x of |G_e and G_x| / |G_e|, and at tau or above it is contaminated.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep._native import LeakageScan, NgramIndex
from data_prep.corpus.indexed import Corpus
from data_prep.corpus.merge import copy_documents
from data_prep.io.errors import InputError
from data_prep.io.files import jsonl_writer, new_directory
from data_prep.leakage.benchmarks import Benchmark, References, file_digest

TOKENS_PER_CALL = 64 << 20  # between two calls of the scan the user sees progress, and can interrupt


@dataclass(frozen=True)
class Leakage:
    """Scores of all instances of all benchmarks, in order. `leaking` are (corpus, document) with a score >= tau."""

    report: dict[str, Any]
    leaking: list[tuple[int, int]]


def measure_leakage(
    corpora: Sequence[Corpus],
    references: References,
    n: int = 13,
    tau: float = 0.10,
    threads: int = 1,
    on_progress: Callable[[int], None] = lambda tokens: None,
) -> Leakage:
    """Scan every document once for all benchmarks. Raises InputError where another tokenizer made a corpus."""
    check_parameters(n, tau)
    for corpus in corpora:
        if corpus.tokenizer["fingerprint"] != references.description["fingerprint"]:
            raise InputError(f"{corpus.prefix} was made by another tokenizer: give that one with --tokenizer")
    offsets = np.cumsum([0, *map(len, references.ids)])
    index = NgramIndex(n, np.concatenate(references.ids).astype(np.int64), offsets)
    scan = LeakageScan(index, tau)
    first_document = np.cumsum([0] + [len(corpus) for corpus in corpora])
    for corpus, first in zip(corpora, first_document.tolist(), strict=False):
        _scan_corpus(scan, corpus, first, threads, on_progress)
    instances = _instances(corpora, references, scan, index.num_grams, n, tau, first_document)
    report = {
        "n": n,
        "tau": tau,
        "tokenizer": references.description["fingerprint"],
        "corpora": [{"prefix": str(c.prefix), "documents": len(c), "tokens": int(c.lengths.sum())} for c in corpora],
        "benchmarks": summaries([_heading(benchmark) for benchmark in references.benchmarks], instances),
        "instances": instances,
    }
    return Leakage(report, [_place(first_document, document) for document in scan.leaking_documents.tolist()])


def check_parameters(n: int, tau: float) -> None:
    """Raise InputError for an n or a tau without meaning."""
    if not 2 <= n <= 1024:
        raise InputError(f"n is {n}; an n-gram has 2 to 1024 tokens")
    if not 0 < tau <= 1:
        raise InputError(f"tau is {tau}; it must be above 0 and at most 1")


def _scan_corpus(
    scan: LeakageScan, corpus: Corpus, first: int, threads: int, on_progress: Callable[[int], None]
) -> None:
    ends = np.cumsum(corpus.lengths)
    document = 0
    while document < len(corpus):
        done = int(ends[document - 1]) if document else 0
        stop = max(document + 1, int(np.searchsorted(ends, done + TOKENS_PER_CALL, side="right")))
        chunk = slice(document, stop)
        scan.add(corpus.tokens, corpus.starts[chunk], corpus.lengths[chunk], first + document, threads)
        on_progress(int(ends[stop - 1]) - done)
        document = stop


def _instances(
    corpora: Sequence[Corpus],
    references: References,
    scan: LeakageScan,
    num_grams: npt.NDArray[np.int64],
    n: int,
    tau: float,
    first_document: npt.NDArray[np.int64],
) -> list[dict[str, Any]]:
    names = [(str(benchmark.path), name) for benchmark in references.benchmarks for name in benchmark.ids()]
    found = []
    for number, ((benchmark, name), grams) in enumerate(zip(names, num_grams.tolist(), strict=True)):
        shared, document = int(scan.most_shared[number]), int(scan.worst_document[number])
        score = shared / grams if grams else 0.0
        entry: dict[str, Any] = {
            "id": name,
            "benchmark": benchmark,
            "score": score,
            "contaminated": bool(grams) and score >= tau,
            "ngrams": grams,
            "too_short": grams == 0,
            "worst_document": None,
            "span": None,
        }
        if shared:
            corpus, local = _place(first_document, document)
            ids = corpora[corpus][local]
            start, end = longest_run(scan.shared_starts(ids.astype(np.int32), number), n)
            entry["worst_document"] = {"corpus": str(corpora[corpus].prefix), "document": local}
            entry["span"] = {"start": start, "end": end, "text": references.tokenizer.decode(ids[start:end].tolist())}
        found.append(entry)
    return found


def longest_run(starts: npt.NDArray[np.int64], n: int) -> tuple[int, int]:
    """The longest stretch of tokens [start, end) that overlapping n-grams at `starts` (ascending) cover."""
    breaks = np.flatnonzero(np.diff(starts) > n - 1) + 1
    runs = np.split(starts, breaks)
    best = max(runs, key=lambda run: run[-1] - run[0])
    return int(best[0]), int(best[-1]) + n


def clean_names(benchmarks: Sequence[Benchmark]) -> list[str]:
    """The name of each cleaned benchmark. Raises InputError when two are the same."""
    stems = [benchmark.path.name.partition(".")[0] for benchmark in benchmarks]
    if len(set(stems)) != len(stems):
        raise InputError("two benchmarks have the same file name: rename one, their cleaned files would be one")
    return stems


def write_clean_benchmarks(benchmarks: Sequence[Benchmark], instances: list[dict[str, Any]], out: Path) -> None:
    """Write each benchmark without its contaminated instances to OUT/STEM.jsonl.zst; what is too short stays."""
    stems = clean_names(benchmarks)
    verdicts = iter(instances)
    with new_directory(out) as part:
        for benchmark, stem in zip(benchmarks, stems, strict=True):
            with jsonl_writer(part / f"{stem}.jsonl.zst") as writer:
                for row in benchmark.rows:
                    if not next(verdicts)["contaminated"]:
                        writer.write(row)


def write_without(corpora: Sequence[Corpus], leaking: list[tuple[int, int]], prefix: Path) -> dict[str, Any]:
    """Write the documents of all corpora but the leaking ones as a new corpus; returns its manifest."""
    kept = [np.ones(len(corpus), dtype=bool) for corpus in corpora]
    for corpus, document in leaking:
        kept[corpus][document] = False
    chosen = [np.flatnonzero(mask) for mask in kept]
    provenance = {"from": [str(corpus.prefix) for corpus in corpora], "leaking_documents_dropped": len(leaking)}
    return copy_documents(corpora, chosen, prefix, provenance)


def _heading(benchmark: Benchmark) -> dict[str, Any]:
    heading = {"file": str(benchmark.path), "sha256": file_digest(benchmark.path)}
    return {**heading, "fields": list(benchmark.fields), "instances": len(benchmark.rows)}


def summaries(headings: Sequence[dict[str, Any]], instances: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """File, fields and counts of each benchmark, whose `instances` lie in `instances` one after the other."""
    found = []
    rest = iter(instances)
    for heading in headings:
        own = list(islice(rest, heading["instances"]))
        counts = {name: sum(entry[name] for entry in own) for name in ("contaminated", "too_short")}
        found.append({**heading, **counts})
    return found


def _place(first_document: npt.NDArray[np.int64], document: int) -> tuple[int, int]:
    """(corpus, document in it) of a document numbered over all corpora."""
    corpus = int(np.searchsorted(first_document, document, side="right")) - 1
    return corpus, document - int(first_document[corpus])
