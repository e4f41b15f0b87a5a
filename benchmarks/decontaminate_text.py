"""13-gram leakage of HumanEval, SWE-bench Verified, GSM8K and MATH-500 into real source text.

Scan: our C++ on token ids against a Python inverted index per core, against the read bandwidth of the machine, and with
two threads. From text: `decontaminate --text`, the whole command as people call it, against overlapy (Aho-Corasick
over 13-grams of words; of the public tools that install on Python 3.11 the fastest; it knows one thread), its start,
index and scan included; also with one thread to search, and against tokenizing all first, then decontaminating.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from data_prep._native import LeakageScan, NgramIndex
from measure import alternate, default_sources, median_of, run, save, write_source

from data_prep.corpus import Corpus
from data_prep.leakage.benchmarks import read_benchmark
from data_prep.tokenizers import load_tokenizer

N = 13
PYTHON_TOKENS = 3_000_000  # the inverted index is slow; its speed does not depend on how much it reads
FILES = (
    "benchmarks/humaneval/HumanEval.jsonl.gz:prompt+canonical_solution",
    "swebench/SWE-bench_Verified_test.parquet:problem_statement+patch",
    "benchmarks/gsm8k/test.jsonl:question+answer",
    "benchmarks/math500/math500_test.jsonl:problem+solution",
)
OVERLAPY = """
import json, sys
from overlapy import OverlapyNgramMatcher, OverlapyTestSet
from data_prep.leakage.benchmarks import read_benchmark
source, *benchmarks = sys.argv[1:]
words = lambda text: text.lower().split()
texts = [words(text) for argument in benchmarks for text in read_benchmark(argument).texts()]
grams = set(map(tuple, OverlapyTestSet("all", min_n=13, max_n=13, examples=texts).ngrams()))
OverlapyNgramMatcher(grams)(words(json.loads(line)["text"]) for line in open(source, encoding="utf-8"))
"""


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def inverted_index(references: Sequence[Sequence[int]], documents: Sequence[Sequence[int]]) -> list[int]:
    """The most grams that one document shares with each reference, by sets and a dictionary."""
    holders: dict[tuple[int, ...], list[int]] = {}
    for number, reference in enumerate(references):
        for gram in {tuple(reference[at : at + N]) for at in range(len(reference) - N + 1)}:
            holders.setdefault(gram, []).append(number)
    most = [0] * len(references)
    for document in documents:
        shared: dict[int, int] = {}
        for gram in {tuple(document[at : at + N]) for at in range(len(document) - N + 1)}:
            for number in holders.get(gram, ()):
                shared[number] = shared.get(number, 0) + 1
        for number, count in shared.items():
            most[number] = max(most[number], count)
    return most


def scan_speeds(corpus: Corpus, references: list[list[int]], repeats: int) -> dict[str, Any]:
    """Tokens per second of each way to scan, alternating, and whether they agree."""
    offsets = np.cumsum([0] + [len(reference) for reference in references])
    index = NgramIndex(N, np.concatenate([np.array(reference, np.int64) for reference in references]), offsets)
    tokens: npt.NDArray[np.int32] = np.array(corpus.tokens)  # in memory: the disk is not what is measured
    few = int(np.searchsorted(np.cumsum(corpus.lengths), PYTHON_TOKENS))
    documents = [corpus[number].tolist() for number in range(few)]
    python_tokens = sum(map(len, documents))
    agreement = []

    def scan(stop: int, threads: int) -> list[int]:
        found = LeakageScan(index, 0.1)
        found.add(tokens, corpus.starts[:stop], corpus.lengths[:stop], 0, threads)
        most: list[int] = found.most_shared.tolist()
        return most

    def python() -> float:
        start = time.perf_counter()
        most = inverted_index(references, documents)
        seconds = time.perf_counter() - start
        agreement.append(most == scan(few, 1))
        return seconds

    seconds = alternate(
        {
            "one_thread": lambda: timed(lambda: scan(len(corpus), 1)),
            "two_threads": lambda: timed(lambda: scan(len(corpus), 2)),
            "read_only": lambda: timed(tokens.max),
            "python_inverted_index": python,
        },
        repeats,
    )
    speed = {name: len(tokens) / median_of(times) / 1e6 for name, times in seconds.items()}
    speed["python_inverted_index"] = python_tokens / median_of(seconds["python_inverted_index"]) / 1e6
    return {
        "corpus_megatokens": len(tokens) / 1e6,
        "python_megatokens": python_tokens / 1e6,
        "scan_seconds": seconds,
        "scan_megatokens_per_second": speed,
        "one_thread_over_python": speed["one_thread"] / speed["python_inverted_index"],
        "one_thread_over_read_bandwidth": speed["one_thread"] / speed["read_only"],
        "two_threads_over_one": speed["two_threads"] / speed["one_thread"],
        "same_counts_as_python": all(agreement),
    }


def scores_in(report: Path) -> list[float]:
    """The score of every instance."""
    return [entry["score"] for entry in json.loads(report.read_bytes())["instances"]]


def main() -> None:
    """Write results/decontaminate_text.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json with the Qwen vocabulary")
    parser.add_argument("--data", type=Path, required=True, help="folder with benchmarks/ and swebench/")
    parser.add_argument("--source", type=Path, nargs="*", default=default_sources(), help="folders with source text")
    parser.add_argument("--megabytes", type=int, default=400, help="of text; 400 are somewhat over 100 Mtok")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    benchmarks = [f"{arguments.data}/{name}" for name in FILES]
    tokenizer, _ = load_tokenizer(arguments.tokenizer)
    references = [ids for argument in benchmarks for ids in tokenizer.encode(read_benchmark(argument).texts())]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        size = write_source(work / "source.jsonl", arguments.source, arguments.megabytes * 1e6)
        data = [Path(sys.executable).with_name("davinci"), "data"]
        flags = [flag for argument in benchmarks for flag in ("--benchmark", argument)]

        def tokens_first() -> float:
            for old in work.glob("corpus.*"):
                old.unlink()
            prefix, report = work / "corpus", work / "corpus.report.json"
            model = ["--tokenizer", arguments.tokenizer]
            one = run([*data, "tokenize", work / "source.jsonl", *model, "--out", prefix])
            two = run([*data, "decontaminate", prefix, *flags, *model, "--out", report, "--threads", "1"])
            return one.seconds + two.seconds

        def from_text(*options: str) -> float:
            (work / "text.json").unlink(missing_ok=True)
            text = ["--text", work / "source.jsonl", "--tokenizer", arguments.tokenizer]
            return run([*data, "decontaminate", *text, *flags, *options, "--out", work / "text.json"]).seconds

        def overlapy() -> float:
            return run([sys.executable, "-c", OVERLAPY, work / "source.jsonl", *benchmarks]).seconds

        sides: dict[str, Callable[[], float]] = {
            "davinci": from_text,
            "overlapy": overlapy,
            "davinci_one_thread": lambda: from_text("--threads", "1"),
            "davinci_tokens_first": tokens_first,
        }
        seconds = alternate(sides, max(1, arguments.repeats // 2))
        scores = [scores_in(work / name) for name in ("text.json", "corpus.report.json")]
        facts = scan_speeds(Corpus(work / "corpus"), references, arguments.repeats)
    speed = {name: size / median_of(times) / 1e6 for name, times in seconds.items()}
    facts |= {
        "instances": len(references),
        "text_megabytes": size / 1e6,
        "from_text_seconds": seconds,
        "same_scores_as_tokens_first": scores[0] == scores[1],
        "from_text_megabytes_per_second": speed,
        "from_text_over_overlapy": speed["davinci"] / speed["overlapy"],
    }
    save("decontaminate_text", facts, ["overlapy", "numpy", "gigatoken"])


if __name__ == "__main__":
    main()
