"""Texts that can leak, found before any is tokenized.

Where the ids of every text spell its bytes, a document that shares an n-gram of tokens with a benchmark holds the
bytes of that gram too. So the texts are searched for the bytes of all grams at once, and only those that hold one are
tokenized, for the exact scan; other tokenizers have every text tokenized.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep._native import TextFilter
from data_prep.corpus.indexed import Corpus
from data_prep.corpus.writer import CorpusWriter
from data_prep.leakage.benchmarks import References
from data_prep.leakage.decontaminate import Leakage
from data_prep.tokenize.encode import Encoding, ParsedChunk, parse
from data_prep.tokenize.inputs import expand, read
from data_prep.tokenize.workers import in_order

Choice = Callable[[Sequence[str]], Sequence[int]]


@dataclass
class Candidates:
    """`corpora` hold what may leak (one corpus, or none); document i of it is record `places[i]` of the inputs."""

    corpora: list[Corpus] = field(default_factory=list)
    places: list[tuple[Path, int]] = field(default_factory=list)
    texts: int = 0
    broken: list[str] = field(default_factory=list)

    def count(self, chunk: ParsedChunk) -> None:
        """Note how many texts a chunk holds, and which of its records hold none."""
        self.texts += len(chunk.records)
        self.broken += [f"{chunk.path}, record {number}, {what}" for number, what in chunk.broken]

    def say_where(self, leakage: Leakage) -> dict[str, Any]:
        """The report on these corpora, in terms of the files that they come from."""
        instances = [
            {**entry, "worst_document": entry["worst_document"] and self._name(entry["worst_document"]["document"])}
            for entry in leakage.report["instances"]
        ]
        rest = {name: value for name, value in leakage.report.items() if name not in ("corpora", "instances")}
        counts = {"texts": self.texts, "tokenized": len(self.places), "broken_records": len(self.broken)}
        leaking = [self._name(document) for _, document in leakage.leaking]
        return {**rest, **counts, "leaking": leaking, "instances": instances}

    def where(self, place: dict[str, Any]) -> str:
        """The file and record of a document, for a person."""
        path, record = self.places[place["document"]]
        return f"{path}, record {record}"

    def _name(self, document: int) -> dict[str, Any]:
        path, record = self.places[document]
        return {"file": str(path), "record": record}


def collect_candidates(
    inputs: list[str],
    key: str,
    references: References,
    n: int,
    prefix: Path,
    threads: int = 1,
    on_progress: Callable[[int], None] = lambda texts: None,
) -> Candidates:
    """Write the texts under `key` that may share an n-gram as the corpus PREFIX. Raises InputError on bad input."""
    encoding = Encoding((key,))  # of which parsing uses the key
    chunks = read(expand(inputs), encoding.columns)
    choose = choice_of(references, n)
    references.encoder.count_from_here()
    found = Candidates()
    writer = CorpusWriter(prefix, references.description)
    with ThreadPoolExecutor(1) as parser, ThreadPoolExecutor(threads) as searcher:
        parsed = in_order(parser, partial(parse, encoding=encoding), chunks, ahead=1)

        def search(chunk: ParsedChunk) -> tuple[ParsedChunk, list[str], Sequence[int]]:
            texts = ["".join(value) if isinstance(value, list) else value for value in chunk.values[key]]
            return chunk, texts, choose(texts)

        for chunk, texts, numbers in in_order(searcher, search, parsed, threads):
            found.count(chunk)
            if numbers:
                ids, lengths = references.encoder.encode([texts[number] for number in numbers])
                writer.add_flat(ids, lengths)
                kept = zip(numbers, lengths.tolist(), strict=True)  # the writer drops what is empty
                found.places += [(chunk.path, chunk.records[number]) for number, length in kept if length]
            on_progress(len(chunk.records))
    if found.places:
        writer.commit({"texts": inputs})
        found.corpora.append(Corpus(prefix))
    else:
        writer.discard()
    return found


def choice_of(references: References, n: int) -> Choice:
    """What finds, in a list of texts, the numbers of those that may share an n-gram with a reference."""
    patterns = _grams_as_bytes(references, n)
    if patterns is None:
        return lambda texts: range(len(texts))
    search = TextFilter(*patterns)
    normalize = references.tokenizer.normalize

    def choose(texts: Sequence[str]) -> list[int]:
        found: list[int] = search.matching([text if text.isascii() else normalize(text) for text in texts])
        return found

    return choose


def _grams_as_bytes(
    references: References, n: int
) -> tuple[bytes, npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
    """All references end to end, and where each of their n-grams begins and ends; None where ids spell no bytes."""
    texts = [text for benchmark in references.benchmarks for text in benchmark.texts()]
    distinct, which = np.unique(np.concatenate(references.ids), return_inverse=True)
    spelling = references.tokenizer.token_bytes(distinct.tolist())
    if spelling is None or references.tokenizer.lost_bytes:  # what is lost between two tokens makes a gram of no text
        return None
    spelled = b"".join(map(spelling.__getitem__, which.tolist()))
    if spelled != "".join(map(references.tokenizer.normalize, texts)).encode():
        return None
    starts = np.cumsum([0, *np.fromiter(map(len, spelling), np.int64)[which]])
    last = np.cumsum([len(ids) for ids in references.ids])  # of each reference: a gram does not go beyond
    first = np.arange(len(which))
    whole = first + n <= np.repeat(last, np.diff(last, prepend=0))
    return spelled, starts[first[whole]], starts[first[whole] + n]
