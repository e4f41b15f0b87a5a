"""Tests of decontamination: scores equal the ten-line definition, always; what leaks is found, shown and dropped."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import EFFORT
from data_prep._native import LeakageScan, NgramIndex
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import InputError
from data_prep.corpus import Corpus, CorpusWriter
from data_prep.io.files import read_jsonl
from data_prep.leakage.benchmarks import References, read_benchmark
from data_prep.leakage.decontaminate import longest_run, measure_leakage, write_clean_benchmarks, write_without
from data_prep.leakage.page import write_page
from data_prep.tokenizers import load_tokenizer

# Small alphabets, so that n-grams repeat and nearly match; documents from empty to a little over one n-gram and beyond.
DOCUMENTS = st.integers(1, 3).flatmap(
    lambda top: st.lists(st.lists(st.integers(0, top), max_size=30), min_size=1, max_size=8)
)


def grams(document: list[int], n: int) -> set[tuple[int, ...]]:
    return {tuple(document[i : i + n]) for i in range(len(document) - n + 1)}


def definition(instances: list[list[int]], documents: list[list[int]], n: int) -> list[tuple[int, int, int]]:
    """(|G_e|, most shared, worst document) of each instance, as the paper says it."""
    found = []
    for instance in instances:
        own = grams(instance, n)
        shared = [len(own & grams(document, n)) for document in documents]
        most = max(shared)
        found.append((len(own), most, shared.index(most) if most else -1))
    return found


def flatten(documents: list[list[int]], dtype: type) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    lengths = np.array([len(d) for d in documents], dtype=np.int64)
    tokens = np.array([token for document in documents for token in document], dtype=dtype)
    return tokens, np.cumsum(lengths) - lengths, lengths


def scan(
    instances: list[list[int]], documents: list[list[int]], n: int, threads: int, dtype: type, calls: int, tau: float
) -> tuple[NgramIndex, LeakageScan]:
    tokens, starts, lengths = flatten(instances, np.int64)
    index = NgramIndex(n, tokens, np.append(starts, len(tokens)))
    result = LeakageScan(index, tau)
    tokens, starts, lengths = flatten(documents, dtype)
    for part in np.array_split(np.arange(len(documents)), calls):
        if len(part):
            result.add(tokens, starts[part], lengths[part], int(part[0]), threads)
    return index, result


@settings(max_examples=400 * EFFORT, deadline=None)
@given(
    DOCUMENTS, DOCUMENTS, st.sampled_from([2, 3, 4, 5, 6, 13]), st.integers(1, 4),
    st.sampled_from([np.uint16, np.int32]), st.integers(1, 3), st.sampled_from([0.1, 0.5, 1.0]),
)  # fmt: skip
def test_scores_equal_the_definition(
    instances: list[list[int]], documents: list[list[int]], n: int, threads: int, dtype: type, calls: int, tau: float
) -> None:
    instances += [documents[0] + instances[0], documents[-1]]  # leaks, planted
    index, result = scan(instances, documents, n, threads, dtype, calls, tau)
    expected = definition(instances, documents, n)
    assert list(zip(index.num_grams, result.most_shared, result.worst_document, strict=True)) == expected
    sizes = [size for size, _, _ in expected]
    leaking = [
        d
        for d, document in enumerate(documents)
        if any(
            size and len(grams(instance, n) & grams(document, n)) / size >= tau
            for instance, size in zip(instances, sizes, strict=True)
        )
    ]
    assert result.leaking_documents.tolist() == leaking
    for number, instance in enumerate(instances):
        own = grams(instance, n)
        for document in documents:
            starts = [i for i in range(len(document) - n + 1) if tuple(document[i : i + n]) in own]
            assert result.shared_starts(np.array(document, dtype=np.int32), number).tolist() == starts


def test_the_longest_run_of_overlapping_grams_is_shown() -> None:
    assert longest_run(np.array([3]), 13) == (3, 16)
    assert longest_run(np.array([3, 4, 5, 40, 41, 42, 43]), 13) == (40, 56)
    assert longest_run(np.array([0, 12, 25]), 13) == (0, 25)  # 12 and 25 touch, and do not overlap


@pytest.mark.parametrize("tokens", [np.zeros(3, np.int64), np.zeros((2, 2), np.int32), np.zeros(8, np.int32)[::2]])
def test_tokens_of_another_type_or_shape_are_refused(tokens: np.ndarray) -> None:
    index = NgramIndex(2, np.array([1, 2, 3]), np.array([0, 3]))
    with pytest.raises(ValueError, match="tokens must be"):
        LeakageScan(index, 0.1).add(tokens, np.array([0]), np.array([2]), 0, 1)


def test_documents_outside_the_tokens_are_refused() -> None:
    result = LeakageScan(NgramIndex(2, np.array([1, 2, 3]), np.array([0, 3])), 0.1)
    for start, length in ((0, 9), (9, 0), (-1, 2), (4, -1), (2**62, 2**62)):
        with pytest.raises(ValueError, match="lies outside"):
            result.add(np.zeros(8, np.int32), np.array([start]), np.array([length]), 0, 1)


@pytest.fixture(scope="module")
def real(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Qwen's tokenizer, HumanEval, and a corpus with two of its problems planted, one of them in part."""
    tokenizer_path = shared_data / "tokenizers" / "qwen.tiktoken"
    humaneval = next((shared_data / "benchmarks" / "humaneval").glob("*.jsonl.gz"))
    tokenizer, description = load_tokenizer(tokenizer_path)
    rows = [json.loads(line) for line in gzip.decompress(humaneval.read_bytes()).splitlines()]
    text = [row["prompt"] + row["canonical_solution"] for row in rows]
    sources = [path.read_text() for path in sorted(Path(__file__).parents[2].glob("*/**/*.py"))[:60]]
    planted = ["# copied\n" + text[17] + "\n# end\n", text[42][: len(text[42]) // 2], *sources]
    folder = tmp_path_factory.mktemp("leakage")
    writer = CorpusWriter(folder / "corpus", description)
    writer.add(tokenizer.encode(planted))
    writer.commit({})
    return tokenizer_path, humaneval, folder / "corpus"


def test_planted_problems_of_a_real_benchmark_are_found(real: tuple[Path, Path, Path], tmp_path: Path) -> None:
    tokenizer, humaneval, prefix = real
    corpus, benchmark = Corpus(prefix), read_benchmark(f"{humaneval}:prompt+canonical_solution")
    references = References.read([f"{humaneval}:prompt+canonical_solution"], tokenizer)
    leakage = measure_leakage([corpus], references, threads=2)
    instances = leakage.report["instances"]
    assert [entry["id"] for entry in instances] == [f"HumanEval/{number}" for number in range(164)]

    encode = load_tokenizer(tokenizer)[0].encode
    expected = definition(encode(benchmark.texts()), [document.tolist() for document in corpus], 13)
    for entry, (num_grams, most, worst) in zip(instances, expected, strict=True):
        assert entry["ngrams"] == num_grams and entry["score"] == (most / num_grams if num_grams else 0)
        assert (entry["worst_document"] or {"document": -1})["document"] == worst

    whole, half = instances[17], instances[42]
    assert whole["score"] > 0.9 and whole["contaminated"] and whole["worst_document"]["document"] == 0
    assert 0.2 < half["score"] < 0.9 and half["worst_document"]["document"] == 1
    assert whole["span"]["text"] in "# copied\n" + benchmark.texts()[17] + "\n# end\n"
    assert {0, 1} <= {document for _, document in leakage.leaking}

    write_clean_benchmarks([benchmark], instances, tmp_path / "clean")
    kept = {row["task_id"] for row in read_jsonl(tmp_path / "clean" / f"{humaneval.name.partition('.')[0]}.jsonl.zst")}
    assert kept == {entry["id"] for entry in instances if not entry["contaminated"]} and len(kept) < 164

    write_without([corpus], leakage.leaking, tmp_path / "rest")
    assert len(Corpus(tmp_path / "rest")) == len(corpus) - len(leakage.leaking)
    again = measure_leakage([Corpus(tmp_path / "rest")], references)
    assert not again.leaking and not any(entry["contaminated"] for entry in again.report["instances"])

    write_page(leakage.report, references, [corpus], tmp_path / "page.html")
    assert "HumanEval/17" in (tmp_path / "page.html").read_text()


def test_what_is_too_short_is_never_called_clean(real: tuple[Path, Path, Path], tmp_path: Path) -> None:
    tokenizer, _, prefix = real
    (tmp_path / "short.jsonl").write_text('{"id": "a", "q": "one two"}\n')
    short = References.read([f"{tmp_path}/short.jsonl:q"], tokenizer)
    [entry] = measure_leakage([Corpus(prefix)], short).report["instances"]
    assert entry["too_short"] and not entry["contaminated"] and entry["ngrams"] == 0


def test_parquet_and_known_fields_are_read(shared_data: Path) -> None:
    lite = read_benchmark(str(shared_data / "swebench" / "SWE-bench_Lite_test.parquet"))
    assert lite.fields == ("problem_statement", "patch") and len(lite.rows) == 300
    assert lite.ids()[0].startswith("astropy__")


@pytest.mark.parametrize(
    "content, argument, message",
    [
        ("", "b.jsonl", "holds no instances"),
        ('{"x": "1"}', "b.jsonl", "name the fields"),
        ('{"x": "1"}', "b.jsonl:y", "instance 1, has no text under y; its text fields are: x"),
        (None, "absent.jsonl:x", "does not exist"),
        ("PAR1nonsense", "b.parquet", "is not a whole table"),
    ],
)
def test_a_wrong_benchmark_is_named(tmp_path: Path, content: str | None, argument: str, message: str) -> None:
    if content is not None:
        (tmp_path / argument.partition(":")[0]).write_text(content)
    with pytest.raises(InputError, match=message):
        read_benchmark(str(tmp_path / argument))


def test_a_corpus_of_another_tokenizer_is_refused(real: tuple[Path, Path, Path], tmp_path: Path) -> None:
    tokenizer, humaneval, _ = real
    writer = CorpusWriter(tmp_path / "other", {"kind": "x", "vocab_size": 9, "eod": None, "fingerprint": "other"})
    writer.add([[1, 2, 3]])
    writer.commit({})
    with pytest.raises(InputError, match="was made by another tokenizer"):
        measure_leakage([Corpus(tmp_path / "other")], References.read([str(humaneval)], tokenizer))


def test_the_report_survives_whatever_comes_after_it(real: tuple[Path, Path, Path], tmp_path: Path) -> None:
    tokenizer, humaneval, _ = real
    encode, description = load_tokenizer(tokenizer)
    writer = CorpusWriter(tmp_path / "leaks", description)
    writer.add(encode.encode(read_benchmark(str(humaneval)).texts()[:2]))
    writer.commit({})
    davinci = Path(sys.executable).with_name("davinci")
    fixed = ["data", "decontaminate", tmp_path / "leaks", "--benchmark", humaneval, "--tokenizer", tokenizer]

    def run(*flags: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([davinci, *fixed, *flags], capture_output=True, text=True, check=False)

    report = tmp_path / "deep" / "er" / "report.json"
    done = run("--out", report, "--drop-to", tmp_path / "none")
    assert done.returncode == 2 and "no document with text" in done.stderr and report.is_file()
    assert not list(tmp_path.glob("none*"))
    for flags in (
        ["--out", tmp_path / "a.json", "--threads", "-1"],
        ["--out", tmp_path / "a.json", "--drop-to", tmp_path / "leaks"],
        ["--out", tmp_path / "a.json", "--benchmark", humaneval, "--clean-benchmark", tmp_path / "clean"],
    ):
        refused = run(*flags)
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1, refused.stderr
        assert not (tmp_path / "a.json").exists() and not (tmp_path / "clean").exists()


def test_one_file_with_two_lists_of_fields_is_two_benchmarks(real: tuple[Path, Path, Path]) -> None:
    tokenizer, humaneval, prefix = real
    both = [f"{humaneval}:{fields}" for fields in ("prompt", "prompt+canonical_solution")]
    summaries = measure_leakage([Corpus(prefix)], References.read(both, tokenizer)).report["benchmarks"]
    assert [summary["instances"] for summary in summaries] == [164, 164]
    alone = [measure_leakage([Corpus(prefix)], References.read([one], tokenizer)).report["benchmarks"] for one in both]
    assert summaries == [*alone[0], *alone[1]]
