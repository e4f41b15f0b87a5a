"""Tests of the search in texts: it finds what a substring search finds, and leakage from text is that of the corpus."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import EFFORT
from data_prep._native import TextFilter
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.corpus import Corpus
from data_prep.io.files import read_json
from data_prep.leakage.benchmarks import References, read_benchmark
from data_prep.leakage.candidates import Candidates, choice_of, collect_candidates
from data_prep.leakage.decontaminate import measure_leakage
from data_prep.tokenize.tokenize import TokenizeJob, tokenize
from data_prep.tokenizers import load_tokenizer

TEXTS = st.text(alphabet="ab ", max_size=80) | st.text(alphabet="aé漢", max_size=40)


@settings(max_examples=600 * EFFORT, deadline=None)
@given(st.data())
def test_a_text_matches_when_it_holds_a_pattern(data: st.DataObject) -> None:
    source = data.draw(TEXTS.filter(bool)).encode() * 2
    begins = data.draw(st.lists(st.integers(0, len(source) - 1), min_size=1, max_size=12))
    ends = [data.draw(st.integers(begin + 1, len(source))) for begin in begins]
    search = TextFilter(source, np.array(begins), np.array(ends))
    patterns = [source[begin:end] for begin, end in zip(begins, ends, strict=True)]
    texts = data.draw(st.lists(TEXTS, max_size=6))
    texts += [texts[0] + bytes(patterns[0]).decode(errors="ignore") + "a"] if texts else []
    expected = [number for number, text in enumerate(texts) if any(pattern in text.encode() for pattern in patterns)]
    assert search.matching(texts) == expected


@pytest.mark.parametrize("least", [1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 16, 17, 31, 64, 200])
def test_patterns_of_any_length_are_found_at_any_place(least: int) -> None:
    random = np.random.default_rng(least)
    source = bytes(random.integers(97, 123, 1000).astype(np.uint8))
    begins = random.integers(0, 1000 - 4 * least, 40)
    ends = begins + random.integers(least, 4 * least, 40) + 1
    search = TextFilter(source, begins, ends)
    noise = bytes(random.integers(65, 91, 400).astype(np.uint8)).decode()
    texts = []
    for begin, end in zip(begins, ends, strict=True):
        at = int(random.integers(0, 400))
        texts += [noise[:at] + source[begin:end].decode() + noise[at:], noise[at:] + source[begin : end - 1].decode()]
    found = search.matching(texts)
    patterns = [source[begin:end] for begin, end in zip(begins, ends, strict=True)]
    assert found == [n for n, text in enumerate(texts) if any(pattern in text.encode() for pattern in patterns)]
    assert set(range(0, 80, 2)) <= set(found)


def test_what_is_no_pattern_is_refused() -> None:
    for begins, ends in (([0], [0]), ([2], [1]), ([-1], [2]), ([0], [4]), ([0, 1], [2])):
        with pytest.raises(ValueError, match=r"pattern 0 is empty|differ in size"):
            TextFilter(b"abc", np.array(begins), np.array(ends))
    with pytest.raises(UnicodeEncodeError):
        TextFilter(b"abc", np.array([0]), np.array([2])).matching(["\ud800"])
    assert TextFilter(b"", np.array([], np.int64), np.array([], np.int64)).matching(["abc", ""]) == []


def write_rows(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module", params=["qwen.tiktoken", "qwen2", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest, shared_data: Path, qwen_json: Path) -> Path:
    if request.param == "sentencepiece":
        return next((shared_data / "tokenizers" / "sentencepiece_testdata").glob("*.model"))
    return qwen_json if request.param == "qwen2" else shared_data / "tokenizers" / request.param


@pytest.fixture(scope="module")
def benchmarks(shared_data: Path) -> list[str]:
    data = shared_data / "benchmarks"
    return [str(data / "humaneval" / "HumanEval.jsonl.gz"), str(data / "gsm8k" / "test.jsonl")]


def test_leakage_from_text_is_that_of_the_corpus(tokenizer: Path, benchmarks: list[str], tmp_path: Path) -> None:
    references = References.read(benchmarks, tokenizer)
    planted = [text for argument in benchmarks for text in read_benchmark(argument).texts()[3:9]]
    sources = [path.read_text() for path in sorted(Path(__file__).parents[2].glob("*/**/*.py"))[:80]]
    combined = "Cafe\u0301 " + planted[0].replace("e", "e\u0301")  # in another normal form than the ids
    texts = [
        *sources,
        "",
        *planted,
        combined,
        *(text[: len(text) // 3] for text in planted),
        "x" * 400,
        "1, 2, 3, 4, " * 9,
    ]
    source = write_rows(tmp_path / "in.jsonl", texts)
    tokenize(TokenizeJob((str(source),), tokenizer, {"text": tmp_path / "all"}))
    corpora = [Corpus(tmp_path / "all")]
    expected = measure_leakage(corpora, references)
    found = collect_candidates([str(source)], "text", references, 13, tmp_path / "candidates")
    leakage = measure_leakage(found.corpora, references)
    numbers = [record for _, record in found.places]
    if "sentencepiece" not in str(tokenizer):
        assert len(numbers) < len(texts) / 2
    of_corpus = [number for number, text in enumerate(texts, 1) if text]  # empty ones are no documents
    for entry, other in zip(leakage.report["instances"], expected.report["instances"], strict=True):
        assert entry["score"] == other["score"] and entry["span"] == other["span"], entry["id"]
        if other["worst_document"]:
            assert numbers[entry["worst_document"]["document"]] == of_corpus[other["worst_document"]["document"]]
    assert [numbers[document] for _, document in leakage.leaking] == [of_corpus[d] for _, d in expected.leaking]


def test_every_gram_of_every_reference_is_found(shared_data: Path, benchmarks: list[str]) -> None:
    references = References.read(benchmarks, shared_data / "tokenizers" / "qwen.tiktoken")
    choose = choice_of(references, 13)
    decode = references.tokenizer.decode
    grams = [decode(ids[at : at + 13]) for ids in references.ids[::7] for at in range(0, len(ids) - 12, 5)]
    whole = [gram for gram in grams if "\ufffd" not in gram]  # the others begin or end inside a character
    assert len(whole) > 5000 and choose([f"[{gram}]" for gram in whole]) == list(range(len(whole)))
    assert choose([gram[:-1] for gram in whole[:50]]) != list(range(50))


def test_the_command_names_files_and_records(shared_data: Path, benchmarks: list[str], tmp_path: Path) -> None:
    leak = read_benchmark(benchmarks[0]).texts()[17]
    first = write_rows(tmp_path / "a.jsonl", ["nothing here", "nor here"])
    second = write_rows(tmp_path / "b.jsonl", ["clean", f"# copied\n{leak}"])
    with second.open("a") as file:
        file.write("{broken\n")
    davinci = Path(sys.executable).with_name("davinci")
    tokenizer = shared_data / "tokenizers" / "qwen.tiktoken"
    fixed = [davinci, "data", "decontaminate", "--text", first, second, "--benchmark", benchmarks[0]]
    fixed += ["--tokenizer", tokenizer]
    outputs = ["--out", tmp_path / "r.json", "--html", tmp_path / "p.html", "--clean-benchmark", tmp_path / "clean"]
    done = subprocess.run([*fixed, *outputs], capture_output=True, text=True, check=True)
    assert "1 broken records were left out" in done.stderr and "record 3" in done.stderr
    report = read_json(tmp_path / "r.json")
    place = {"file": str(second), "record": 2}
    assert place in report["leaking"] and report["texts"] == 4 and report["tokenized"] == 1
    assert next(entry for entry in report["instances"] if entry["id"] == "HumanEval/17")["worst_document"] == place
    assert f"{second}, record 2" in (tmp_path / "p.html").read_text() and (tmp_path / "clean").is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl", "clean", "p.html", "r.json"]
    refused = subprocess.run(
        [*fixed, "--out", tmp_path / "x", "--drop-to", tmp_path / "y"], capture_output=True, text=True
    )
    assert refused.returncode == 2 and "without --text" in refused.stderr and refused.stderr.count("\n") == 1


def test_texts_without_any_leak_give_a_report(shared_data: Path, benchmarks: list[str], tmp_path: Path) -> None:
    references = References.read(benchmarks, shared_data / "tokenizers" / "qwen.tiktoken")
    source = write_rows(tmp_path / "a.jsonl", ["nothing here"])
    found = collect_candidates([str(source)], "text", references, 13, tmp_path / "c")
    assert isinstance(found, Candidates) and found.corpora == [] and found.texts == 1
    report = found.say_where(measure_leakage(found.corpora, references))
    assert {entry["score"] for entry in report["instances"]} == {0.0} and report["leaking"] == []
    assert not list(tmp_path.glob("c*"))
    assert load_tokenizer(shared_data / "tokenizers" / "qwen.tiktoken")[1] == references.description
