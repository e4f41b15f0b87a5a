"""The command: what is asked, kept, told apart and refused, with a real server and real benchmark files."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from commands import skip_without_sandbox
from text_server import text_server, words

from data_prep.io.files import read_json, write_json
from data_prep.leakage.benchmarks import file_digest

GSM8K = "gsm8k/test.jsonl"


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Ten sums; a model that can add up to five has half of them right."""
    rows = [{"question": f"What is {n} plus {n}?", "answer": f"It is {n}+{n}.\n#### {2 * n}"} for n in range(10)]
    write_lines(tmp_path / "data" / GSM8K, rows)
    return tmp_path / "data"


def adds_up_to(most: int) -> Any:
    def answer(prompt: str) -> str:
        n = int(prompt.rpartition("What is ")[2].split()[0])
        return f" The answer is {2 * n if n <= most else 99}.\n\nQ: And next?\nA: The answer is 1."

    return answer


def run(*arguments: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(words(*arguments), capture_output=True, text=True)


def evaluated(data: Path, out: Path, *arguments: Any) -> dict[str, Any]:
    done = run("--data", data, "--out", out, "--json", *arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == read_json(out / "results.json")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def refused(*arguments: Any) -> str:
    done = run(*arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    return done.stderr


def leakage(
    path: Path, file: Path, contaminated: set[str], too_short: set[str] = frozenset(), count: int = 10, **changes: Any
) -> Path:  # type: ignore[assignment]
    """A report as davinci data decontaminate writes it."""
    instances = [
        {"id": str(n), "benchmark": str(file), "score": 0.5 if str(n) in contaminated else 0.0, "ngrams": 9,
         "contaminated": str(n) in contaminated, "too_short": str(n) in too_short, "worst_document": None, "span": None}
        for n in range(count)
    ]  # fmt: skip
    heading = {"file": str(file), "sha256": file_digest(file), "fields": ["question"], "instances": count,
               "contaminated": len(contaminated), "too_short": len(too_short), **changes}  # fmt: skip
    write_json(
        path, {"n": 13, "tau": 0.1, "tokenizer": "t", "corpora": [], "benchmarks": [heading], "instances": instances}
    )
    return path


def test_two_models_are_compared_and_nothing_is_asked_twice(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with text_server(adds_up_to(4)) as base, text_server(adds_up_to(7)) as better:
        results = evaluated(data, out, "--model", f"base={base.url}", "--tasks", "gsm8k")
        assert results["tasks"]["gsm8k"]["models"]["base"]["rows"]["all"]["right"] == 5
        results = evaluated(data, out, "--model", f"base={base.url}", "--model", f"mid={better.url}")
        assert len(base.requests) == len(better.requests) == 10  # the second time base is not asked
    difference = results["tasks"]["gsm8k"]["differences"]["mid"]["all"]
    assert difference["difference"] == pytest.approx(0.3) and difference["p_value"] == pytest.approx(0.25)
    table = (out / "table.md").read_text()
    assert (
        "| GSM8K | base | all | 5/10 | 50.0 | 23.7 to 76.3 |" in table and "| GSM8K | mid | all (10) | +30.0 |" in table
    )
    [request] = [each for each in base.requests if "What is 3 plus" in each["prompt"]]
    assert request["temperature"] == 0 and len(request["stop"]) <= 4 and request["repetition_penalty"] == 1.0
    assert request["prompt"].endswith("Q: What is 3 plus 3?\nA:") and request["prompt"].count("Q: ") == 9
    # without any server: scored anew, of both
    again = evaluated(data, out, "--rescore")
    assert again["tasks"] == results["tasks"]


def test_every_answer_is_there_to_read(data: Path, tmp_path: Path) -> None:
    with text_server(adds_up_to(4)) as server:
        done = run("--data", data, "--model", f"m={server.url}", "--out", tmp_path / "out", "--show", 2)
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.count("--- gsm8k/") == 2
        and "What is 5 plus 5?" in done.stdout
        and "The answer is 99." in done.stdout
    )
    lines = [json.loads(line) for line in (tmp_path / "out/scores/m/gsm8k.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"gsm8k/{n}" for n in range(10)]
    assert lines[9]["answer"] == " The answer is 99.\n"  # cut at the stop string that the server did not heed
    assert (
        lines[9]["parsed"] == "99"
        and lines[9]["status"] == "wrong"
        and lines[9]["others"] == {"strict": False, "flexible": False}
    )


def test_contaminated_instances_are_asked_and_told_apart(data: Path, tmp_path: Path) -> None:
    report = leakage(tmp_path / "leakage.json", data / GSM8K, {"0", "1", "9"}, {"2"})
    with text_server(adds_up_to(4)) as server:
        results = evaluated(data, tmp_path / "out", "--model", f"m={server.url}", "--exclude", report)
        assert len(server.requests) == 10
    rows = results["tasks"]["gsm8k"]["models"]["m"]["rows"]
    counts = {name: (row["right"], row["answers"]) for name, row in rows.items()}
    assert counts == {"all": (5, 10), "clean": (2, 6), "contaminated": (2, 3), "too_short": (1, 1)}
    assert sum(rows[name]["answers"] for name in ("clean", "contaminated", "too_short")) == rows["all"]["answers"]


def test_a_report_on_other_bytes_or_other_instances_is_refused(data: Path, tmp_path: Path) -> None:
    common = ("--data", data, "--model", "m=http://127.0.0.1:9/v1", "--out", tmp_path / "out", "--exclude")
    other = leakage(tmp_path / "other.json", data / GSM8K, set(), sha256="0" * 64)
    assert "is on another" in refused(*common, other)
    elsewhere = leakage(tmp_path / "elsewhere.json", data / GSM8K, set(), sha256="0" * 64)
    write_json(elsewhere, json.loads(elsewhere.read_text().replace("test.jsonl", "other.jsonl")))
    assert "is on none of the files that are asked" in refused(*common, elsewhere)
    old = leakage(tmp_path / "old.json", data / GSM8K, set(), sha256="")
    assert "does not say which bytes" in refused(*common, old)
    short = leakage(tmp_path / "short.json", data / GSM8K, set(), count=9)
    assert "say nothing of gsm8k/9" in refused(*common, short)
    broken = leakage(tmp_path / "broken.json", data / GSM8K, set(), instances=11)
    assert "10 instances, and other counts" in refused(*common, broken)


def test_a_real_report_of_decontaminate_is_taken(data: Path, tmp_path: Path, qwen_json: Path) -> None:
    texts = write_lines(tmp_path / "texts.jsonl", [{"text": "What is 3 plus 3?It is 3+3.\n#### 6 " * 3}])
    command = [*words()[:3], "data", "decontaminate", str(texts), "--text", "--benchmark", str(data / GSM8K),
               "--tokenizer", str(qwen_json), "--out", str(tmp_path / "leakage.json"), "-n", "5"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with text_server(adds_up_to(9)) as server:
        found = evaluated(data, tmp_path / "out", "--model", f"m={server.url}", "--exclude", tmp_path / "leakage.json")
    rows = found["tasks"]["gsm8k"]["models"]["m"]["rows"]
    assert rows["contaminated"]["answers"] >= 1 and rows["clean"]["answers"] + rows["contaminated"]["answers"] == 10


def test_removing_an_instance_changes_no_other_prompt(data: Path, tmp_path: Path) -> None:
    with text_server(adds_up_to(4)) as server:
        evaluated(data, tmp_path / "a", "--model", f"m={server.url}")
        everything = Counter(each["prompt"] for each in server.requests)
        lines = (data / GSM8K).read_text().splitlines(keepends=True)
        (data / GSM8K).write_text("".join(lines[:4] + lines[5:]))
        server.requests.clear()
        evaluated(data, tmp_path / "b", "--model", f"m={server.url}")
    left = Counter(each["prompt"] for each in server.requests)
    assert sum((everything - left).values()) == 1 and not left - everything


def test_killed_at_any_moment_it_goes_on_and_asks_nothing_twice(data: Path, tmp_path: Path) -> None:
    rows = [{"question": f"What is {n} plus {n}?", "answer": f"#### {2 * n}"} for n in range(60)]
    write_lines(data / GSM8K, rows)

    def slow(prompt: str) -> str:
        time.sleep(0.1)
        return str(adds_up_to(30)(prompt))

    out = tmp_path / "out"
    with text_server(slow) as server:
        arguments = words("--data", data, "--model", f"m={server.url}", "--out", out, "--concurrency", 4)
        answers = out / "answers" / "m" / "gsm8k.jsonl"
        for least in (8, 25):
            process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while process.poll() is None and (not answers.exists() or answers.read_bytes().count(b"\n") < least):
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            process.wait()
        kept = answers.read_bytes()
        answers.write_bytes(kept[: kept.rfind(b"\n") - 7])  # as if the last line had been cut off
        done = subprocess.run(arguments, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        asked = Counter(each["prompt"] for each in server.requests)
    assert len(asked) == 60 and sum(asked.values()) <= 60 + 2 * 4 + 1  # those that were under way, and the cut one
    keys = [json.loads(line)["key"] for line in answers.read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 60
    results = read_json(out / "results.json")
    assert results["tasks"]["gsm8k"]["models"]["m"]["rows"]["all"]["right"] == 31


def test_answers_of_other_settings_or_weights_are_not_taken(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with text_server(adds_up_to(4)) as server, text_server(adds_up_to(5), name="another") as another:
        evaluated(data, out, "--model", f"m={server.url}")
        evaluated(data, out, "--model", f"m={server.url}", "--samples", 2, "--temperature", 0.7)
        assert len(server.requests) == 30 and len({each.get("seed") for each in server.requests}) == 21
        assert "answers of another model, or by another engine, named m" in refused(
            "--data", data, "--model", f"m={another.url}", "--out", out
        )
        message = refused("--data", data, "--rescore", "--out", out, "--chat")
        assert "10 questions were not asked of m as these settings ask them" in message


def test_two_tasks_that_ask_the_same_ask_once(tmp_path: Path, shared_data: Path) -> None:
    """HumanEval+ has HumanEval's prompts but for one. Its exclusions are HumanEval's."""
    skip_without_sandbox(tmp_path)
    source = shared_data / "benchmarks"
    humaneval = source / "humaneval" / "HumanEval.jsonl.gz"
    ids = [f"HumanEval/{n}" for n in range(164)]
    report = leakage(tmp_path / "leakage.json", humaneval, set(), count=164)
    held = read_json(report)
    for name, instance in zip(ids, held["instances"], strict=True):
        instance |= {"id": name, "contaminated": name == "HumanEval/1"}
    write_json(report, held)
    with text_server(lambda prompt: "\n    return None\n") as server:
        results = evaluated(source, tmp_path / "out", "--model", f"m={server.url}", "--limit", 3,
                            "--tasks", "humaneval,humaneval_plus", "--exclude", report)  # fmt: skip
        assert len(server.requests) == 3
    for name in ("humaneval", "humaneval_plus"):
        rows = results["tasks"][name]["models"]["m"]["rows"]
        assert rows["contaminated"]["answers"] == 1 and rows["clean"]["answers"] == 2 and rows["all"]["right"] == 0
    assert results["tasks"]["humaneval"]["own_solutions_fail"] == {}


def test_a_chat_answers_with_a_code_block(tmp_path: Path, shared_data: Path) -> None:
    skip_without_sandbox(tmp_path)
    solution = "def truncate_number(number: float) -> float:\n    return number % 1.0"

    def answer(prompt: str) -> str:
        return f"Sure!\n```python\nprint('an example')\n```\nand so:\n```python\n{solution}\n```\nDone."

    with text_server(answer) as server:
        results = evaluated(shared_data / "benchmarks", tmp_path / "out", "--model", f"m={server.url}", "--tasks",
                            "humaneval", "--limit", 3, "--chat")  # fmt: skip
    assert {each["path"] for each in server.requests} == {"/v1/chat/completions"}
    assert results["tasks"]["humaneval"]["models"]["m"]["rows"]["all"]["right"] == 1  # HumanEval/2 alone


def test_what_is_not_to_be_published_is_not_shown(tmp_path: Path) -> None:
    head = "Record ID,Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3\n"
    (tmp_path / "data/gpqa").mkdir(parents=True)
    (tmp_path / "data/gpqa/gpqa_main.csv").write_text(head + 'r1,"Secret\nquestion, of physics?",gold,w1,w2,w3\n')
    with text_server(lambda prompt: " I think of the Secret. The correct answer is (A)") as server:
        done = run("--data", tmp_path / "data", "--model", f"m={server.url}", "--out", tmp_path / "out", "--show", 5)
    assert done.returncode == 0, done.stderr
    assert "Secret\nquestion, of physics?" in server.requests[0]["prompt"]
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file() and "answers" not in path.parts:
            assert "Secret" not in path.read_text(), path
    assert ("Secret" not in done.stdout and "1/1" in done.stdout) or "0/1" in done.stdout


def test_the_data_is_checked_and_nothing_is_fetched(data: Path) -> None:
    done = run("--data", data, "--check", "--json")
    found = {each["task"]: each for each in json.loads(done.stdout)}
    assert found["gsm8k"]["instances"] == 10 and found["gsm8k"]["published"] == 1319
    assert found["gsm8k"]["files"] == {GSM8K: file_digest(data / GSM8K)}
    assert found["math500"]["files"] == {} and "hf download" in found["math500"]["download"]
    text = run("--data", data, "--check").stdout
    assert "10 of 1,319 instances" in text and "missing" in text


MISTAKES = {
    "no model": ((), "no model is named"),
    "unknown benchmark": (("--tasks", "gsm9k"), "did you mean gsm8k"),
    "missing benchmark": (("--tasks", "math500", "--model", "m=http://127.0.0.1:9/v1"), "is not below"),
    "name without model": (("--model", "m"), "give NAME=DIRECTORY"),
    "samples of one": (("--samples", "3", "--model", "m=http://127.0.0.1:9/v1"), "raise --temperature"),
    "no directory": (("--model", "m=/none/there"), "is no directory"),
    "unknown engine": (("--engine", "vlm", "--model", "m=/tmp"), "did you mean vllm"),
    "password": (("--model", "m=http://me:secret@127.0.0.1:9/v1"), "give the key as OPENAI_API_KEY"),
    "name": (("--model", "a|b=/tmp"), "of letters, digits"),
    "temperature": (("--temperature", "inf", "--model", "m=http://127.0.0.1:9/v1"), "must be a number"),
    "no server": (("--model", "m=http://127.0.0.1:9/v1"), "is the server there"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence(data: Path, tmp_path: Path, name: str) -> None:
    arguments, sentence = MISTAKES[name]
    message = refused("--data", data, "--out", tmp_path / "out", *arguments)
    assert sentence in message and len(message.splitlines()) == 1


DAMAGED = {
    "no JSON": ("{", "is not JSON"), "no row": ("", "holds no question"),
    "no text": ('{"question": 1}', "no text under question"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_data_is_refused_with_its_place(data: Path, tmp_path: Path, name: str) -> None:
    content, sentence = DAMAGED[name]
    (data / GSM8K).write_text(content)
    assert sentence in refused(
        "--data", data, "--out", tmp_path / "o", "--model", "m=http://127.0.0.1:9/v1", "--tasks", "gsm8k"
    )


def test_what_does_not_fit_is_counted_and_what_is_clipped_refused(data: Path, tmp_path: Path) -> None:
    first = {"question": "What is 0 plus " + "0 " * 50 + "?", "answer": "#### 0"}
    write_lines(data / GSM8K, [first, *map(json.loads, (data / GSM8K).read_text().splitlines()[1:])])
    with text_server(adds_up_to(9), context=400 + 470) as server:  # a prompt has about 450 words
        rows = evaluated(data, tmp_path / "a", "--model", f"m={server.url}")["tasks"]["gsm8k"]["models"]["m"]["rows"][
            "all"
        ]
    assert len(server.requests) == 9 and (rows["no_room"], rows["right"], rows["answers"]) == (1, 9, 10)
    with text_server(adds_up_to(9), finish="length", completion_tokens=7) as server:
        message = refused("--data", data, "--model", f"m={server.url}", "--out", tmp_path / "b")
    assert "has clipped an answer at 7 of 400 tokens" in message


def test_what_had_no_room_is_asked_where_there_is_some(data: Path, tmp_path: Path) -> None:
    with text_server(adds_up_to(9), context=500) as server:
        rows = evaluated(data, tmp_path / "a", "--model", f"m={server.url}")["tasks"]["gsm8k"]["models"]["m"]["rows"][
            "all"
        ]
    assert (rows["no_room"], rows["right"], rows["answers"]) == (10, 0, 10)
    with text_server(adds_up_to(9), context=5000) as server:  # the same model on another port
        rows = evaluated(data, tmp_path / "a", "--model", f"m={server.url}")["tasks"]["gsm8k"]["models"]["m"]["rows"][
            "all"
        ]
    assert (rows["no_room"], rows["right"]) == (0, 10)


def test_two_reports_say_the_worst_in_any_order(data: Path, tmp_path: Path) -> None:
    one = leakage(tmp_path / "one.json", data / GSM8K, {"0"}, {"1", "2"})
    two = leakage(tmp_path / "two.json", data / GSM8K, {"2"})
    found = []
    with text_server(adds_up_to(4)) as server:
        for order in ((one, two), (two, one)):
            excluded = [word for path in order for word in ("--exclude", path)]
            results = evaluated(data, tmp_path / "out", "--model", f"m={server.url}", *excluded)
            rows = results["tasks"]["gsm8k"]["models"]["m"]["rows"]
            found.append({name: rows[name]["answers"] for name in ("clean", "contaminated", "too_short")})
    assert found == [{"clean": 7, "contaminated": 2, "too_short": 1}] * 2


@pytest.mark.parametrize("content", ['["m"]', "3", '{"m": 1}', "{"])
def test_damaged_notes_are_one_sentence(data: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "out/answers").mkdir(parents=True)
    (tmp_path / "out/answers/models.json").write_text(content)
    for arguments in (("--rescore",), ("--model", "m=/tmp")):
        assert "models.json" in refused("--data", data, "--out", tmp_path / "out", *arguments)


@pytest.mark.parametrize(
    "line", ['{"key": 1, "text": null}', "[]", "\x00", '{"key": "k", "text": 5, "finish": "stop"}']
)
def test_damaged_answers_are_asked_again(data: Path, tmp_path: Path, line: str) -> None:
    with text_server(adds_up_to(9)) as server:
        evaluated(data, tmp_path / "out", "--model", f"m={server.url}")
        path = tmp_path / "out/answers/m/gsm8k.jsonl"
        lines = path.read_text().splitlines()
        path.write_text("\n".join([line, *lines[1:]]) + "\n")
        results = evaluated(data, tmp_path / "out", "--model", f"m={server.url}")
        assert len(server.requests) == 11
    assert results["tasks"]["gsm8k"]["models"]["m"]["rows"]["all"]["right"] == 10


def test_a_reply_in_parts_is_a_text_and_one_of_no_kind_is_not_kept(data: Path, tmp_path: Path) -> None:
    with text_server(lambda prompt: [{"type": "text", "text": "The answer is 4."}]) as server:  # type: ignore[arg-type,return-value]
        results = evaluated(data, tmp_path / "a", "--model", f"m={server.url}", "--chat")
    assert results["tasks"]["gsm8k"]["models"]["m"]["rows"]["all"]["right"] == 1
    with text_server(lambda prompt: 5) as server:  # type: ignore[arg-type,return-value]
        done = run("--data", data, "--model", f"m={server.url}", "--out", tmp_path / "b", "--chat")
    assert done.returncode == 1 and "is no reply" in done.stderr and "Traceback" not in done.stderr


def test_a_name_is_free_while_it_has_no_answers(data: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "is neither" in refused("--data", data, "--model", f"m={tmp_path / 'empty'}", "--out", tmp_path / "out")
    with text_server(adds_up_to(4)) as server:
        evaluated(data, tmp_path / "out", "--model", f"m={server.url}")


def test_worked_examples_beside_scibench_are_no_questions(tmp_path: Path, shared_data: Path) -> None:
    folder = tmp_path / "data/scibench"
    folder.mkdir(parents=True)
    for name in ("thermo.json", "thermo_sol.json"):
        (folder / name).write_text((shared_data / "benchmarks/scibench/thermo.json").read_text())
    done = run("--data", tmp_path / "data", "--check", "--tasks", "scibench", "--json")
    assert json.loads(done.stdout)[0]["instances"] == 66


def test_a_server_that_refuses_is_quoted(data: Path, tmp_path: Path) -> None:
    with text_server(adds_up_to(9), refuses=(400, "too many stop strings")) as server:
        assert "too many stop strings" in refused("--data", data, "--model", f"m={server.url}", "--out", tmp_path / "o")


def test_the_key_is_sent_and_never_written(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "OPENAI_API_KEY", "sk-a-secret-of-some-length")
    with text_server(adds_up_to(9)) as server:
        evaluated(data, tmp_path / "out", "--model", f"m={server.url}")
    assert all(b"sk-a-secret" not in path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())


def test_checkpoints_give_a_curve(data: Path, tmp_path: Path) -> None:
    """Scores by step for davinci eval checkpoints --scores."""
    from megatron_davinci.evaluate.benchmarks.run import _curves
    from megatron_davinci.evaluate.curves import read_scores
    from megatron_davinci.evaluate.text_models.open import NamedModel

    models = []
    for step in (20, 100):
        folder = tmp_path / f"step_{step:07d}"
        folder.mkdir()
        (folder / ".metadata").write_bytes(b"x")
        models.append(NamedModel(str(step), str(folder)))
    models.append(NamedModel("other", "http://127.0.0.1:9/v1"))
    task = {"title": "GSM8K", "models": {m.name: {"rows": {"all": {"share": 0.25}}} for m in models}}
    write_json(tmp_path / "scores.json", _curves(models, {"tasks": {"gsm8k": task}}))
    assert read_scores([tmp_path / "scores.json"]) == {"GSM8K": {20: 0.25, 100: 0.25}}


def test_prompts_are_exported_for_lm_eval(data: Path, tmp_path: Path) -> None:
    import yaml

    command = [
        *words()[:3],
        "eval",
        "export-lm-eval",
        "--tasks",
        "gsm8k",
        "--data",
        str(data),
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "davinci_gsm8k\n", done.stderr
    task = yaml.safe_load((tmp_path / "out/gsm8k.yaml").read_text())
    assert (
        task["generation_kwargs"]["until"][0] == "\nQ:" and Path(task["dataset_kwargs"]["data_files"]["test"]).is_file()
    )


def test_asking_a_server_needs_no_torch() -> None:
    """What is heavy is imported where a model runs in this process, or mathematics is judged."""
    code = (
        "import sys, megatron_davinci.evaluate.benchmarks.command, megatron_davinci.evaluate.text_models.served\n"
        "print([name for name in ('torch', 'transformers', 'sympy', 'megatron.core') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
