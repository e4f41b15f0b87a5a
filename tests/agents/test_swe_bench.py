"""`davinci eval swe-bench`: gold is 100%, nothing is 0%, and the figures are those of ten lines of Python."""

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from agent_server import agent_server
from commands import davinci
from conftest import of_acceptance
from gold_model import ScriptedModel, call, say

from data_prep.environments.collection import TaskCollection
from data_prep.environments.interpreters import interpreters
from data_prep.io.files import read_json, read_jsonl
from megatron_davinci.evaluate.swe_bench import summarize_runs

Message = dict[str, Any]


def idle(messages: Sequence[Message]) -> Message:
    return say("I do nothing.", call("submit"))


def run(*words: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "megatron_davinci", *map(str, words)], capture_output=True, text=True)


def evaluate(*words: str | Path) -> "subprocess.CompletedProcess[str]":
    return run("eval", "swe-bench", *words)


@pytest.fixture(scope="module")
def benchmark_file(shapes_envs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tasks as a benchmark, with one more instance, of which nobody has an environment."""
    path = tmp_path_factory.mktemp("benchmark") / "tasks.jsonl"
    assert davinci("environments", "export", shapes_envs, "--out", path).returncode == 0
    rows = list(read_jsonl(path))
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in [*rows, {**rows[0], "instance_id": "a__b-7"}]))
    return path


def test_figures_tables_and_reports_of_swe_bench_s_own_format(
    shapes_envs: Path, benchmark_file: Path, tmp_path: Path
) -> None:
    options = [benchmark_file, "--envs", shapes_envs, "--model", "m", "--runs", "2"]
    with agent_server(ScriptedModel(TaskCollection(shapes_envs), 1).answer) as server:
        done = evaluate(*options, "--server", server.url, "--out", tmp_path / "half", "--step", "40")
        assert done.returncode == 0, done.stderr
        again = evaluate(*options, "--server", server.url, "--out", tmp_path / "half")
        assert again.returncode == 2 and "exists" in again.stderr
        (tmp_path / "half" / "results.json").unlink()  # killed before it was written: nobody is asked again
        asked = len(server.requests)
        other = evaluate(*options, "--server", server.url, "--out", tmp_path / "half", "--steps", "7")
        assert other.returncode == 2 and "was made with other options" in other.stderr
        done = evaluate(*options, "--server", server.url, "--out", tmp_path / "half", "--step", "40", "--json")
        assert done.returncode == 0 and len(server.requests) == asked, done.stderr
    told = json.loads(done.stdout)
    assert told["pass_at_1"] == 0.5 and told["judged_instances"] == 2 and told["instances"] == 3
    assert told["unavailable"] == {"not_imported": ["a__b-7"]} and told["pass_at_1_of_all_instances"] == 2 / 6
    assert told["name"] == "m (100 steps, temperature 0, 128k context, 2 runs)"
    assert told["repositories"] == {"geometry/shapes": {"instances": 2, "pass_at_1": 0.5}}
    assert read_json(tmp_path / "half" / "scores.json") == {"SWE-bench Pass@1": {"40": 0.5}}
    report = read_json(tmp_path / "half" / "run-2" / "report.json")
    assert report["resolved_ids"] == ["geometry__shapes-1"] and report["incomplete_ids"] == ["a__b-7"]
    predictions = tmp_path / "half" / "run-2" / "predictions.jsonl"
    judged = davinci("environments", "judge", shapes_envs, "--predictions", predictions,
                     "--report", tmp_path / "again.json")  # fmt: skip
    assert judged.returncode == 0 and read_json(tmp_path / "again.json")["resolved_ids"] == report["resolved_ids"]
    assert "| 50.0% |" in (tmp_path / "half" / "table.md").read_text()


def test_gold_is_all_and_nothing_is_none(shapes_envs: Path, benchmark_file: Path, tmp_path: Path) -> None:
    collection = TaskCollection(shapes_envs)
    names = [word for name in collection.ids() for word in ("--instance", name)]
    for script, share in ((ScriptedModel(collection, 2).answer, "100.0%"), (idle, "0.0%")):
        with agent_server(script) as server:
            options = ["--server", server.url, "--model", "m", "--runs", "1", *names, "--out", tmp_path / share]
            done = evaluate(benchmark_file, "--envs", shapes_envs, *options)
        assert done.returncode == 0 and f"| {share} |" in done.stdout and "2 of 2" in done.stdout, done.stderr


@of_acceptance
def test_gold_is_all_on_verified_s_own_instances(shared_data: Path, tmp_path: Path) -> None:
    if "3.9" not in interpreters():
        pytest.skip("Python 3.9 is not at hand")
    folder = shared_data / "swebench"
    trees = sorted(path.name.removesuffix(".tar.xz") for path in (folder / "trees").iterdir())
    options = [folder / "SWE-bench_Verified_test.parquet", "--envs", tmp_path / "envs", "--trees", folder / "trees"]
    options += [word for name in trees for word in ("--instance", name)]
    for share in ("0.0%", "100.0%"):
        known = ScriptedModel(TaskCollection(tmp_path / "envs"), 5).answer if share == "100.0%" else idle
        with agent_server(known) as server:
            done = evaluate(*options, "--server", server.url, "--model", "m", "--out", tmp_path / share)
        assert done.returncode == 0 and f"| {share} |" in done.stdout and "5 of 5" in done.stdout, done.stderr


def test_a_row_that_is_patched_is_told_and_must_be_what_ran(
    shapes_envs: Path, benchmark_file: Path, tmp_path: Path
) -> None:
    rows = list(read_jsonl(benchmark_file))
    options = [benchmark_file, "--envs", shapes_envs, "--model", "m", "--runs", "1", "--out", tmp_path / "out"]
    patched = tmp_path / "patched.jsonl"
    with agent_server(idle) as server:
        options += ["--server", server.url, "--patched", patched]
        for row, said in (
            ({**rows[0], "test_patch": rows[1]["test_patch"]}, "was made of another row of geometry__shapes-1"),
            ({**rows[0], "instance_id": "c__d-1"}, "has c__d-1, which is not in"),
        ):
            patched.write_bytes(orjson.dumps(row) + b"\n")
            done = evaluate(*options)
            assert done.returncode == 2 and said in done.stderr, done.stderr
        patched.write_bytes(orjson.dumps(rows[0]) + b"\n")
        assert evaluate(*options).returncode == 0
    assert read_json(tmp_path / "out" / "results.json")["patched"] == ["geometry__shapes-1"]


def record(name: str, run: int, outcome: str) -> dict[str, Any]:
    settings = {"model": "m", "steps": 300, "temperature": 0.7, "context_tokens": 200_000}
    return {"instance_id": name, "rollout": run, "outcome": outcome, "repo": name[0], "exit_status": "submitted",
            "settings": settings, "steps": [{"usage": {"prompt_tokens": 1}}],
            "usage": {"completion_tokens": 2, "context_tokens": 3},
            "trajectory_id": f"{name}.{run}"}  # fmt: skip


def test_rollouts_that_could_not_be_judged_stand_apart() -> None:
    outcomes = {"a1": ("resolved", "tests"), "a2": ("environment", "resolved"), "b1": ("limits", "environment"),
                "b2": ("environment", "environment")}  # fmt: skip
    records = [record(name, run, outcome) for name, both in outcomes.items() for run, outcome in enumerate(both, 1)]
    found = summarize_runs(records, [*outcomes, "c1"], {"gold_fails": ["c1"]}, [])
    shares = [1 / 2, 1 / 2]
    assert [run["pass_at_1"] for run in found["runs"].values()] == shares
    assert found["pass_at_1"] == statistics.mean(shares) and found["pass_at_1_spread"] == statistics.stdev(shares) == 0
    assert found["not_judged"] == ["a2.1", "b1.2", "b2.1", "b2.2"] and found["judged_instances"] == 3
    by_instance = [1 / 2, 1, 0]
    share, n, z = statistics.mean(by_instance), 3, 1.959963984540054
    half = z * (share * (1 - share) / n + z * z / 4 / n / n) ** 0.5 / (1 + z * z / n)
    middle = (share + z * z / 2 / n) / (1 + z * z / n)
    assert found["pass_at_1_interval"] == pytest.approx([middle - half, middle + half])
    assert found["name"] == "m (300 steps, temperature 0.7, 200,000 tokens context, 2 runs)"


def test_rollouts_can_be_read_in_a_report(shapes_envs: Path, tmp_path: Path) -> None:
    with agent_server(ScriptedModel(TaskCollection(shapes_envs), 1).answer) as server:
        done = davinci("environments", "run", shapes_envs, "--server", server.url, "--model", "m", "--rollouts", "1",
                       "--out", tmp_path / "rollouts")  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = run("report", tmp_path / "rollouts", "--out", tmp_path / "page.html")
    assert made.returncode == 0, made.stderr
    page = (tmp_path / "page.html").read_text()
    for text in ("Rollouts of agents", "geometry__shapes-1.1: resolved", "git apply /tmp/right.patch", "a * a"):
        assert text in page
