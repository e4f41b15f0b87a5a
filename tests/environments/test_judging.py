"""Predictions to a report as SWE-bench writes it; what is judged stays; what cannot be judged is no failure."""

import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
from attacks import PERIMETER, SQUARE, patch_of
from commands import davinci, davinci_words
from shapes import FIXED

from data_prep import InputError
from data_prep.environments.collection import TaskCollection
from data_prep.environments.judge import Judge, decide, outcome_of, taken_of
from data_prep.environments.judging import VerdictFile
from data_prep.environments.predictions import Prediction, read_predictions
from data_prep.environments.sandbox.base import SandboxFailed
from data_prep.environments.sandbox.bubblewrap import BubblewrapSandbox
from data_prep.environments.scratch import ScratchNames
from data_prep.environments.testing import Observation, is_pytest, plant, read_report
from data_prep.environments.verify import CONDITIONS, verify_tasks


def prediction(task: str, patch: str | None, model: str = "m") -> dict[str, Any]:
    return {"instance_id": task, "model_name_or_path": model, "model_patch": patch}


def write_lines(path: Path, entries: list[dict[str, Any]]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(entry) + b"\n" for entry in entries))
    return path


@pytest.fixture
def given(tasks: TaskCollection, tmp_path: Path) -> Path:
    task = tasks.task(SQUARE)
    conftest = patch_of(tasks.environment(task).tree, {"src/shapes/area.py": "x = 1\n"}, tmp_path / "attacked")
    return write_lines(
        tmp_path / "predictions.jsonl",
        [prediction(PERIMETER, tasks.task(PERIMETER).patch), prediction(SQUARE, conftest.decode())],
    )


def test_the_report_has_swe_bench_s_form(shapes_envs: Path, given: Path, tmp_path: Path) -> None:
    done = davinci(
        "environments", "judge", shapes_envs, "--predictions", given, "--report", tmp_path / "r.json", "--json"
    )
    assert done.returncode == 0, done.stderr
    report = orjson.loads((tmp_path / "r.json").read_bytes())
    verdicts = {verdict["instance_id"]: verdict for verdict in report.pop("verdicts")}
    assert report == {
        "total_instances": 2, "submitted_instances": 2, "completed_instances": 2, "resolved_instances": 1,
        "unresolved_instances": 1, "empty_patch_instances": 0, "error_instances": 0,
        "completed_ids": [SQUARE, PERIMETER], "resolved_ids": [PERIMETER], "unresolved_ids": [SQUARE],
        "empty_patch_ids": [], "error_ids": [], "incomplete_ids": [], "submitted_ids": [SQUARE, PERIMETER],
        "tampered_ids": [], "parsed_ids": [], "schema_version": 2,
    }  # fmt: skip
    assert verdicts[SQUARE]["failed"]["FAIL_TO_PASS"] == ["tests/test_area.py::test_square"]
    assert verdicts[SQUARE]["reason"].startswith("tests failed or are missing: 1 of FAIL_TO_PASS")
    assert orjson.loads(done.stdout)["resolved_instances"] == 1
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("r.json")) == ["r.json"]


def test_predictions_are_read_in_each_of_their_forms(tmp_path: Path) -> None:
    entries = [prediction("a-1", "x\n"), prediction("a-2", None)]
    wanted = [Prediction("a-1", "m", b"x\n"), Prediction("a-2", "m", b"")]
    (tmp_path / "array.json").write_bytes(orjson.dumps(entries))
    (tmp_path / "object.json").write_bytes(orjson.dumps({entry["instance_id"]: entry for entry in entries}))
    for path in (write_lines(tmp_path / "lines.jsonl", entries), tmp_path / "array.json", tmp_path / "object.json"):
        assert read_predictions(path) == wanted


@pytest.mark.parametrize(
    "entries, said",
    [
        ([prediction("a", "x"), prediction("a", "y")], "two predictions for a"),
        ([{"instance_id": "a", "model_patch": "x"}], "model_name_or_path is missing, or no text"),
        ([{"instance_id": 3, "model_name_or_path": "m", "model_patch": "x"}], "instance_id is missing, or no text"),
        ([], "holds no prediction"),
    ],
)
def test_what_is_no_prediction_is_refused(tmp_path: Path, entries: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_predictions(write_lines(tmp_path / "p.jsonl", entries))


def test_a_killed_judge_goes_on(shapes_envs: Path, given: Path, tmp_path: Path) -> None:
    """And asks only for what it has not judged: the first verdict is put in its place by hand, and believed."""
    report, kept = tmp_path / "r.json", tmp_path / "r.json.verdicts.jsonl.part"
    words = davinci_words("environments", "judge", shapes_envs, "--predictions", given, "--report", report)
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    end = time.monotonic() + 60
    while not kept.exists() and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not report.exists()
    kept.write_bytes(kept.read_bytes().replace(b'"reason":""', b'"reason":"kept"') + b'\n{"key":"cut o')
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reasons = {each["instance_id"]: each["reason"] for each in orjson.loads(report.read_bytes())["verdicts"]}
    assert reasons[PERIMETER] == "kept" and not kept.exists()


def test_a_machine_s_fault_is_tried_again_and_is_no_failure(
    tasks: TaskCollection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tasks.task(SQUARE)
    place, tries = tasks.environment(task), []

    def fails(self: Judge, *arguments: object) -> Observation:
        tries.append(1)
        raise SandboxFailed("no room for a process")

    monkeypatch.setattr(Judge, "observe", fails)
    verdict = Judge(BubblewrapSandbox(), ScratchNames(tmp_path), "none").judge(task, place, task.patch_bytes)
    assert (verdict.status, verdict.reason, len(tries)) == ("infrastructure", "no room for a process", 3)
    file = VerdictFile(tmp_path / "kept")
    file.put(Prediction(SQUARE, "m", b"x"), verdict)
    assert VerdictFile(tmp_path / "kept").get(Prediction(SQUARE, "m", b"x")) is None  # asked for again


def test_an_unknown_task_and_a_patch_that_is_none(shapes_envs: Path, tmp_path: Path) -> None:
    entries = [prediction("nobody__nothing-1", "x\n"), prediction(SQUARE, "not a patch\n"), prediction(PERIMETER, " ")]
    given = write_lines(tmp_path / "p.jsonl", entries)
    done = davinci("environments", "judge", shapes_envs, "--predictions", given, "--report", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    report = orjson.loads((tmp_path / "r.json").read_bytes())
    assert (report["error_ids"], report["empty_patch_ids"]) == (["nobody__nothing-1"], [PERIMETER])
    reasons = {each["instance_id"]: each["reason"] for each in report["verdicts"]}
    assert "has no task nobody__nothing-1" in reasons["nobody__nothing-1"]
    assert "make it with git diff" in reasons[SQUARE]


needs_a_clock = pytest.mark.skipif(shutil.which("faketime") is None, reason="faketime is not installed")


@needs_a_clock
def test_tasks_hold_in_other_conditions(shapes_envs: Path, tmp_path: Path) -> None:
    done = davinci("environments", "verify", shapes_envs, "--report", tmp_path / "v.json", "--task", SQUARE)
    assert done.returncode == 0, done.stdout + done.stderr
    report = orjson.loads((tmp_path / "v.json").read_bytes())
    assert report == {"conditions": list(CONDITIONS), "checked": 1, "invalid_ids": [], "faults": []}


@needs_a_clock
def test_a_task_that_depends_on_the_year_does_not_hold(
    shapes_envs: Path, tasks: TaskCollection, tmp_path: Path
) -> None:
    """The planted one: its test passes in the year in which it was validated."""
    copy = tmp_path / "envs"
    subprocess.run(["cp", "-a", shapes_envs, copy], check=True)
    task = tasks.task(SQUARE)
    year = time.gmtime().tm_year
    dated = task.test_patch.replace("assert square(3) == 9", f"import time; assert time.gmtime().tm_year == {year}")
    held = {**task.to_json(), "test_patch": dated, "patch": task.patch}
    (copy / "tasks" / SQUARE / "task.json").write_bytes(orjson.dumps(held))
    found = verify_tasks(copy, tmp_path / "v.json", [SQUARE], ["as built", "a year ahead"])
    faults = {(fault["condition"], fault["fault"].partition(":")[0]) for fault in found["faults"]}
    assert faults == {
        ("as built", "an empty patch is resolved"), ("a year ahead", "the gold patch is unresolved"),
    }  # fmt: skip
    with pytest.raises(InputError, match="--condition is 'on a Sunday'"):
        verify_tasks(copy, tmp_path / "w.json", [], ["on a Sunday"])


def observed(outcomes: dict[str, str], **more: Any) -> Observation:
    return Observation(outcomes, "plugin", heard=frozenset({"tests/test_area.py"}), **more)


@pytest.mark.parametrize(
    "outcomes, status",
    [
        ({"test_square": "passed", "test_rectangle": "passed"}, "resolved"),
        ({"test_square": "xfailed", "test_rectangle": "passed"}, "unresolved"),
        ({"test_square": "passed", "test_rectangle": "xfailed"}, "unresolved"),
        ({"test_square": "passed", "test_rectangle": "skipped"}, "unresolved"),
        ({"test_square": "skipped", "test_rectangle": "passed"}, "unresolved"),
        ({"test_square": "xpassed", "test_rectangle": "passed"}, "unresolved"),
        ({"test_square": "passed"}, "unresolved"),
        ({"test_rectangle": "passed"}, "unresolved"),
        ({"test_square": "error", "test_rectangle": "passed"}, "unresolved"),
        ({}, "unresolved"),
    ],
)
def test_what_counts_as_resolved(tasks: TaskCollection, outcomes: dict[str, str], status: str) -> None:
    held = {
        **vars(tasks.task(SQUARE)),
        "fail_to_pass": ("tests/test_area.py::test_square",),
        "pass_to_pass": ("tests/test_area.py::test_rectangle",),
    }
    task = type(tasks.task(SQUARE))(**held)
    named = {f"tests/test_area.py::{name}": outcome for name, outcome in outcomes.items()}
    assert decide(task, observed(named)).status == status
    assert decide(task, observed(named, stopped="time")).status == "unresolved"
    assert decide(task, observed(named, tampered="forged")).status == "tampered"
    same = {test: outcome for test, outcome in named.items() if outcome in ("xfailed", "skipped")}
    as_gold = type(task)(**{**held, "validated_with": {**task.validated_with, "not_passed": same}})
    if len(outcomes) == 2 and "skipped" not in outcomes["test_square"]:
        wanted = status if {"error", "xpassed"} & set(outcomes.values()) else "resolved"
        assert decide(as_gold, observed(named)).status == wanted
    unheard = Observation(named, "plugin")
    good = [outcome for outcome in outcomes.values() if outcome in ("passed", "xfailed")]
    assert decide(task, unheard).status == ("tampered" if good else "unresolved")


def test_published_ids_are_matched_as_they_were_logged() -> None:
    outcomes = {
        "t.py::a[x y-1]": "passed",
        "t.py::b[/path/to/z]": "passed",
        "t.py::a[x y-2]": "passed",
        "t.py::c": "failed",
    }
    assert outcome_of("t.py::c", outcomes) == "failed"
    assert outcome_of("t.py::a[x", outcomes) == "passed"  # cut at the blank: all that begin so agree
    assert outcome_of("t.py::a[x", {**outcomes, "t.py::a[x z]": "failed"}) == "missing"
    assert outcome_of("t.py::b[/z]", outcomes) == "passed"
    assert outcome_of("t.py::d", outcomes) == "missing"


@pytest.mark.parametrize(
    "command, alone",
    [
        ("pytest -rA tests/test_x.py", True),
        ("python -m pytest -q", True),
        ("LANG=C python3.9 -m pytest", True),
        ("py.test", True),
        ("pytest; true", False),
        ("pytest | tee log", False),
        ("pytest $(cat files)", False),
        ("tox -- tests", False),
        ("./tests/runtests.py pytest", False),
        ("pytester", False),
        ("PYTHONPATH=src pytest", True),
        ("PYTEST_ADDOPTS=-x pytest", False),
    ],
)
def test_which_commands_are_pytest_alone(command: str, alone: bool) -> None:
    assert is_pytest(command) == alone


def test_planted_tests_fail_somewhere_under_names_of_the_file_s_own_words() -> None:
    text = b"import os\n\n\n@mark\ndef test_open_file():\n    pass\n\n\n"
    text += b"class T:\n    def test_close(self):\n        pass\n"
    names, places, bodies = set(), set(), set()
    for _ in range(60):
        planted, some = plant(text, {"test_open_file", "test_close"})
        assert 2 <= len(some) <= 4 and len(set(some)) == len(some)
        assert {word for name in some for word in name.split("_")} <= {"test", "open", "file"}
        assert planted.replace(b"\n", b"").startswith(b"import os")
        space: dict[str, Any] = {"mark": lambda function: function}
        exec(planted, space)
        assert space["test_open_file"]() is None and space["T"]().test_close() is None
        for name in some:
            with pytest.raises((AssertionError, ValueError, LookupError)):
                space[name]()
        names |= set(some)
        places |= {planted.index(f"def {name}(".encode()) < planted.index(b"@mark") for name in some}
        bodies.add(planted)
    assert len(names) > 5 and places == {True, False} and len(bodies) == 60
    assert len(plant(b"print 'an older Python'\n", set())[1]) >= 2
    taken = {"test_a_a"}
    for _ in range(20):
        plant(b"def test_a(): pass\n", taken)
    assert len(taken) >= 41  # no name twice, over all files


def test_every_change_of_a_report_is_seen() -> None:
    import hashlib
    import hmac

    key, state, lines = b"k", hmac.new(b"k", b"", hashlib.sha256), []
    for record in ({"id": "a", "outcome": "passed"}, {"id": "b", "outcome": "failed"}, {"end": 1}):
        content = orjson.dumps(record)
        state.update(content)
        lines.append(content + b"\t" + state.hexdigest().encode())
    whole = b"\n".join(lines) + b"\n"
    assert read_report(whole, key) == ({"a": "passed", "b": "failed"}, 1, "")
    assert read_report(whole, b"other")[2] == "line 1 is not signed"
    for damaged in (whole.replace(b"failed", b"passed"), b"\n".join(lines[1:]) + b"\n", whole + lines[0] + b"\n"):
        assert read_report(damaged, key)[2]
    assert read_report(whole[:-1], key)[2] or read_report(whole[:-1], key)[1] is None
    assert read_report(b"", key) == ({}, None, "")


def test_gold_s_configuration_is_taken_and_the_agent_s_is_not(tasks: TaskCollection, tmp_path: Path) -> None:
    task = tasks.task(SQUARE)
    tree = tasks.environment(task).tree
    gold = patch_of(tree, {"src/shapes/area.py": FIXED, "pyproject.toml": "# gold's\n"}, tmp_path / "gold")
    agents = patch_of(tree, {"src/shapes/area.py": "# agent's\n", "pyproject.toml": "# agent's\n"}, tmp_path / "agents")
    changed = type(task)(**{**vars(task), "patch": gold.decode()})
    taken = taken_of(agents, changed, tree)
    assert b"+# gold's" in taken.configuration and b"area.py" not in taken.configuration
    assert b"pyproject" not in taken.patch and taken.dropped == ("pyproject.toml",)
