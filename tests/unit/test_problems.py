"""Properties of problems with answers: what is read as an answer, when two are the same, what is refused."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from data_prep import InputError
from data_prep.corpus import Corpus
from megatron_davinci.demo.toy_language import write_model
from megatron_davinci.rl.math_grader import are_equal
from megatron_davinci.rl.problems import ProblemKeys, final_answer, read_answers, read_difficulties, write_problems


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("problems") / "model"
    write_model(folder)
    return folder


def lines(path: Path, *records: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize(
    "solution, answer",
    [
        ("She has 16 - 3 = <<16-3=13>>13 eggs.\n#### 13", "13"),
        (r"So $x = \boxed{\frac{1}{2}}$, not \boxed{3}.", "3"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"\left( 3, \frac{\pi}{2} \right)"),
        (" 7 ", "7"),
    ],
)
def test_the_final_answer_of_a_solution(solution: str, answer: str) -> None:
    assert final_answer(solution) == answer


def test_the_same_mathematics_is_the_same_answer() -> None:
    same = [("18", "18.0"), ("1000", "1,000"), (r"\frac{1}{2}", "0.5"), (r"3\sqrt{13}", r"\sqrt{117}"), ("5", "x=5")]
    other = [("18", "81"), (r"\frac{1}{2}", "2"), (r"(3,\frac{\pi}{2})", r"(\frac{\pi}{2},3)"), ("x+1", "x-1")]
    assert are_equal([*same, *other]) == {**dict.fromkeys(same, True), **dict.fromkeys(other, False)}


def test_words_are_text_and_equations_assign() -> None:
    pairs = {
        ("three", " Three"): True,
        ("three", "there"): False,
        (r"\text{Evelyn}", "evelyn"): True,
        ("5", "4=5"): False,
        ("5", r"\theta = 5"): True,
        ("p - q", "p-q"): True,
        (r"\frac{1}{2}", r"\frac{2}{4}"): True,
    }
    assert are_equal(pairs) == pairs


def test_what_an_answer_says_is_not_run(capfd: pytest.CaptureFixture[str]) -> None:
    """sympy pastes names of symbols into code; math-verify, left to itself, lets an answer print."""
    truth, answer = r"\sqrt{2}", r"\sum_{n=0}^{\infty} (\frac{1+n \text{[_:=print][0:0]+}_{(7777)}}{n!})"
    bare = (
        "from math_verify import LatexExtractionConfig, parse, verify; import sys;"
        "verify(*(parse('\\\\boxed{' + text + '}', [LatexExtractionConfig()]) for text in sys.argv[1:]))"
    )
    said = subprocess.run([sys.executable, "-c", bare, truth, answer], capture_output=True, text=True, check=False)
    assert "7777" in said.stdout  # else this would show nothing
    capfd.readouterr()
    assert are_equal([(truth, answer)]) == {(truth, answer): False}
    assert "7777" not in capfd.readouterr().out


def test_a_worker_may_not_touch_the_world(tmp_path: Path) -> None:
    kept, written = tmp_path / "kept", tmp_path / "written"
    kept.touch()
    code = """
import os, socket, subprocess, sys
from megatron_davinci.rl import math_grader
math_grader._begin()
kept, written = sys.argv[1:]
for act in (
    lambda: open(written, "w"),
    lambda: os.remove(kept),
    lambda: subprocess.run(["true"]),
    lambda: os.system("true"),
    lambda: socket.create_connection(("127.0.0.1", 9)),
):
    try:
        act()
    except PermissionError as error:
        print(error)
"""
    command = [sys.executable, "-c", code, str(kept), str(written)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.count("is not allowed here") == 5 and kept.exists() and not written.exists()


def test_what_cannot_be_compared_is_wrong() -> None:
    """Towers of powers end, and whoever answers with a novel is not read."""
    pairs = [
        ("2", "9^{9^{9^{9^{9^{9}}}}}"),
        ("2", "10^{10^{10}}"),
        ("5", "2000000!"),
        ("2", "2" * 1000),
        ("2", ""),
        ("2", "{{{"),
        ("2", "2"),
    ]
    assert [*are_equal(pairs).values()] == [False] * 6 + [True]


def test_real_answers_equal_themselves_and_not_each_other(shared_data: Path) -> None:
    from data_prep.io.files import read_jsonl

    answers = [line["answer"] for line in read_jsonl(shared_data / "benchmarks" / "math500" / "math500_test.jsonl")]
    answers = list(dict.fromkeys(answers))[:60]
    mine = [(answer, answer) for answer in answers]
    others = list(pairwise(answers))
    verdicts = are_equal([*mine, *others])
    assert all(verdicts[pair] for pair in mine) and sum(verdicts[pair] for pair in others) <= 1


def test_problems_become_a_corpus_with_answers(tmp_path: Path, tokenizer: Path) -> None:
    source = lines(
        tmp_path / "p.jsonl",
        {"question": " red opens", "answer": "It says so. #### three"},
        {"question": " blue opens", "answer": 1},
    )
    told = write_problems([source], tokenizer, tmp_path / "p", ProblemKeys("question"))
    corpus = Corpus(tmp_path / "p")
    assert told["problems"] == len(corpus) == 2 and read_answers(corpus) == ["three", "1"]


def test_gsm8k_as_it_comes(tmp_path: Path, tokenizer: Path, shared_data: Path) -> None:
    source = shared_data / "benchmarks" / "gsm8k" / "test.jsonl"
    write_problems([source], tokenizer, tmp_path / "p", ProblemKeys("question"))
    answers = read_answers(Corpus(tmp_path / "p"))
    assert len(answers) == 1319 and answers[:3] == ["18", "3", "70000"]
    assert all(answer.replace(",", "").lstrip("-").replace(".", "").isdigit() for answer in answers)


@pytest.mark.parametrize(
    "record, sentence",
    [
        ({"question": "a", "answer": "1"}, "record 2, lacks problem as text, or answer as text or a whole number"),
        ({"problem": "a", "answer": None}, "record 2, lacks problem as text, or answer as text"),
        ({"problem": "a", "answer": True}, "record 2, lacks problem as text, or answer as text"),
        ({"problem": "a", "answer": 0.5}, "write other numbers as text"),
        ({"problem": "a", "answer": "It " * 200}, "a final answer of 599 characters, 300 at most can be compared"),
        ({"problem": " ", "answer": "1"}, "record 2: an empty problem or answer"),
        ({"problem": "a", "answer": "#### "}, "record 2: an empty problem or answer"),
    ],
)
def test_what_is_no_problem_is_named(tmp_path: Path, tokenizer: Path, record: dict[str, object], sentence: str) -> None:
    source = lines(tmp_path / "p.jsonl", {"problem": "a", "answer": "1"}, record)
    with pytest.raises(InputError, match=sentence):
        write_problems([source], tokenizer, tmp_path / "p", ProblemKeys())
    assert not list(tmp_path.glob("p.*i*"))


def test_a_corpus_without_answers_says_how_to_make_them(tmp_path: Path, tokenizer: Path) -> None:
    source = lines(tmp_path / "p.jsonl", {"problem": "a b", "answer": "1"})
    write_problems([source], tokenizer, tmp_path / "p", ProblemKeys())
    (tmp_path / "p.answers.json").rename(tmp_path / "kept")
    with pytest.raises(InputError, match=r"has no answers \(p.answers.json\): write it with davinci rmt problems"):
        read_answers(Corpus(tmp_path / "p"))
    (tmp_path / "kept").rename(tmp_path / "p.answers.json")
    known = json.loads((tmp_path / "p.answers.json").read_text())
    for change, sentence in (
        ({"corpus": "another"}, "answers other problems"),
        ({"answers": ["1", "2"]}, "is damaged, or of another version"),
        ({"answers": [1]}, "is damaged, or of another version"),
        ({"format": 2}, "is damaged, or of another version"),
    ):
        (tmp_path / "p.answers.json").write_text(json.dumps({**known, **change}))
        with pytest.raises(InputError, match=sentence):
            read_answers(Corpus(tmp_path / "p"))


def test_nothing_makes_no_corpus(tmp_path: Path, tokenizer: Path) -> None:
    with pytest.raises(InputError, match=r"p.jsonl: no problem is there; nothing is written"):
        write_problems([lines(tmp_path / "p.jsonl")], tokenizer, tmp_path / "p", ProblemKeys())


def test_a_problem_of_lost_bytes_shifts_no_answer(tmp_path: Path, tokenizer: Path) -> None:
    definition = json.loads((tokenizer / "tokenizer.json").read_text())
    definition["model"]["vocab"].pop(chr(0x104))  # byte 4
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    source = lines(tmp_path / "p.jsonl", {"problem": "a", "answer": "1"}, {"problem": "\x04", "answer": "2"})
    with pytest.raises(InputError, match="record 2: an empty problem or answer"):
        write_problems([source], tmp_path, tmp_path / "p", ProblemKeys())


def test_a_split_is_alike_in_difficulty_and_has_nothing_twice(tokenizer: Path, tmp_path: Path) -> None:
    sizes = {"1": 60, "2": 30, "10": 11}
    records = [
        {"problem": f"one {name} {number}", "answer": number, "level": int(name)}
        for name, size in sizes.items()
        for number in range(size)
    ]
    source = lines(tmp_path / "p.jsonl", *records, *records[:7])
    keys = ProblemKeys(difficulty="level")
    told = write_problems([source], tokenizer, tmp_path / "p", keys, (50, 20))
    assert told["different problems"] == 101 and told["there twice"] == 7
    twice = lines(tmp_path / "twice.jsonl", *records[:3], {**records[0], "answer": 5})
    with pytest.raises(InputError, match=r"problem 4 has the answer '5', and the same problem before it '0'"):
        write_problems([twice], tokenizer, tmp_path / "twice", keys, (1, 1))
    parts = [Corpus(tmp_path / f"p-{name}") for name in ("train", "test")]
    texts = [[corpus[number].tobytes() for number in range(len(corpus))] for corpus in parts]
    assert [len(set(part)) for part in texts] == [50, 20] and not set(texts[0]) & set(texts[1])
    for corpus, count in zip(parts, (50, 20), strict=True):
        found = read_difficulties(corpus)
        assert found is not None
        assert all(abs(found.count(name) - count * size / 101) < 1 for name, size in sizes.items())
    assert told["test"]["difficulties"] == {"1": 12, "10": 2, "2": 6}
    again = write_problems([source], tokenizer, tmp_path / "again", keys, (50, 20))
    assert (tmp_path / "again-test.bin").read_bytes() == (tmp_path / "p-test.bin").read_bytes() and again != told
    other = write_problems([source], tokenizer, tmp_path / "other", keys, (50, 20), seed=1)
    assert (tmp_path / "other-test.bin").read_bytes() != (tmp_path / "p-test.bin").read_bytes() and other
    with pytest.raises(InputError, match=r"--split 100 20 needs 120 different problems, 101 are there"):
        write_problems([source], tokenizer, tmp_path / "q", keys, (100, 20))
    with pytest.raises(InputError, match=r"record 1, lacks rating as text or a number"):
        write_problems([source], tokenizer, tmp_path / "q", ProblemKeys(difficulty="rating"))
    assert not list(tmp_path.glob("q*"))


def test_problems_without_a_difficulty_have_none(tokenizer: Path, tmp_path: Path) -> None:
    source = lines(tmp_path / "p.jsonl", *({"problem": f"one {n}", "answer": n} for n in range(9)))
    write_problems([source], tokenizer, tmp_path / "p", ProblemKeys(), (6, 3))
    assert (
        read_difficulties(Corpus(tmp_path / "p-train")) is None and len(read_answers(Corpus(tmp_path / "p-test"))) == 3
    )
