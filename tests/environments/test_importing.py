"""Published tasks: SWE-bench's own, from the trees at hand; rows of the other sets; a reason for every row refused."""

from pathlib import Path

import orjson
import pytest
from commands import davinci, skip_without_sandbox
from conftest import EFFORT

from data_prep.environments.candidates import NoCandidate
from data_prep.environments.collection import TaskCollection
from data_prep.environments.foreign import command_between_markers, foreign_task
from data_prep.environments.interpreters import interpreters
from data_prep.environments.log_parsers import swe_bench_parser, swe_bench_specs
from data_prep.environments.sandbox.bubblewrap import BubblewrapSandbox
from data_prep.io.files import read_json, read_jsonl

# requests-5414 and 2931 want to wait for an answer that never comes; without a network they are told at once.
INSTANCES = ["psf__requests-1142", "psf__requests-5414"]
IN_ACCEPTANCE = ["pallets__flask-5014", "psf__requests-6028", "psf__requests-2931"]


def test_instances_of_swe_bench_resolve_with_gold_alone(shared_data: Path, tmp_path: Path) -> None:
    skip_without_sandbox(tmp_path)
    names = INSTANCES + (IN_ACCEPTANCE if EFFORT > 1 else [])
    if "3.9" not in interpreters():
        pytest.skip("Python 3.9 is not at hand")
    folder = shared_data / "swebench"
    chosen = [word for name in names for word in ("--instance", name)]
    done = davinci(
        "environments", "import", folder / "SWE-bench_Verified_test.parquet", "--trees", folder / "trees",
        "--out", tmp_path / "envs", *chosen, "--tasks", "2", "--workers", "2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    collection = TaskCollection(tmp_path / "envs")
    assert collection.ids() == sorted(names), (tmp_path / "envs" / "rejected.jsonl").read_text()
    for task in collection.tasks():
        assert task.runs == 2 and "evaluation_only" in task.flags and task.validated_with["by"] == "plugin"
    # gold against the empty patch was the condition; a network that refuses at once is another
    report = tmp_path / "v.json"
    checked = davinci(
        "environments", "verify", tmp_path / "envs", "--report", report, "--task", "psf__requests-5414",
        "--condition", "as built", "--condition", "without network",
    )  # fmt: skip
    faults = orjson.loads(report.read_bytes())["faults"]
    assert checked.returncode == 1 and {fault["condition"] for fault in faults} == {"without network"}


def test_an_imported_set_goes_out_again(shapes_envs: Path, tmp_path: Path, shapes_records: tuple[Path, Path]) -> None:
    """Export, then import with the lists as given: the same tasks, in environments made anew from their own recipes."""
    done = davinci("environments", "export", shapes_envs, "--out", tmp_path / "tasks.jsonl")
    assert done.returncode == 0, done.stderr
    rows = list(read_jsonl(tmp_path / "tasks.jsonl"))
    assert [row["instance_id"] for row in rows] == TaskCollection(shapes_envs).ids()
    texts = davinci("environments", "export", shapes_envs, "--out", tmp_path / "swe.jsonl", "--lists-as-text")
    assert texts.returncode == 0 and isinstance(next(read_jsonl(tmp_path / "swe.jsonl"))["FAIL_TO_PASS"], str)
    damaged = {**rows[0], "instance_id": "geometry__shapes-9", "patch": ""}
    given = tmp_path / "given.jsonl"
    given.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in [*rows, rows[0], damaged, {"instance_id": "x"}]))
    clone, _ = shapes_records
    done = davinci("environments", "import", given, "--clone", clone, "--out", tmp_path / "envs")
    assert done.returncode == 0, done.stderr
    again = TaskCollection(tmp_path / "envs")
    for name in TaskCollection(shapes_envs).ids():
        ours, theirs = TaskCollection(shapes_envs).task(name), again.task(name)
        assert (ours.fail_to_pass, ours.pass_to_pass) == (theirs.fail_to_pass, theirs.pass_to_pass)
        assert ours.pip_freeze == theirs.pip_freeze
    reasons = [(line["id"], line["reason"]) for line in read_jsonl(tmp_path / "envs" / "rejected.jsonl")]
    assert reasons == [
        ("geometry__shapes-1", "there_twice"), ("geometry__shapes-9", "unverifiable"), ("x", "not_a_task"),
    ]  # fmt: skip
    assert read_json(tmp_path / "envs" / "summary.json")["tasks"] == 2


def test_a_row_of_openswe_s_is_a_recipe_and_no_judge() -> None:
    row = {
        "instance_id": "a__b-1", "repo": "a/b", "base_commit": "0" * 40, "problem_statement": "p",
        "patch": "diff --git a/x.py b/x.py\n--- a/x.py\n+++ b/x.py\n@@ -1 +1 @@\n-a\n+b\n",
        "test_patch": "diff --git a/tests/test_x.py b/tests/test_x.py\n--- /dev/null\n+++ b/tests/test_x.py\n"
        "@@ -0,0 +1 @@\n+a\n",
        "Dockerfile": "FROM openswe-python-3.9\nRUN apt-get update && pip install -e .[test] && \\\n"
        " pip3 install pytest\n"
        "RUN git clone x && curl y\n",
        "eval_script": "git apply -v - <<'EOF'\ndiff\nEOF\necho '>>>>> Start Test Output'\n"
        "pytest -rA tests/test_x.py\n"
        "git checkout x\necho '>>>>> End Test Output'\n",
    }  # fmt: skip
    task = foreign_task(row, tables=False)
    assert task.install_config is not None
    assert task.install_config.python == "3.9" and task.install_config.test_cmd == "pytest -rA tests/test_x.py"
    assert task.install_config.install == ("pip install -e .[test]", "pip install pytest")
    assert task.test_files == ("tests/test_x.py",) and task.fail_to_pass == ()
    for changed, reason in (
        ({"patch": ""}, "unverifiable"), ({"test_patch": " "}, "no_test_patch"), ({"repo": 3}, "not_a_task"),
        ({"instance_id": "../x"}, "not_a_task"), ({"Dockerfile": "FROM ubuntu"}, "unknown_base_image"),
        ({"patch": "no patch"}, "not_a_task"), ({"FAIL_TO_PASS": "[1"}, "not_a_task"),
    ):  # fmt: skip
        with pytest.raises(NoCandidate) as refused:
            foreign_task({**row, **changed}, tables=False)
        assert str(refused.value) == reason


def test_both_spellings_of_lists_and_times_are_read() -> None:
    row = {
        "instance_id": "a__b-1", "repo": "a/b", "base_commit": "0" * 40, "problem_statement": "p",
        "patch": "diff --git a/x.py b/x.py\n--- a/x.py\n+++ b/x.py\n@@ -1 +1 @@\n-a\n+b\n",
        "test_patch": "diff --git a/test_x.py b/test_x.py\n--- a/test_x.py\n+++ b/test_x.py\n@@ -1 +1 @@\n-a\n+b\n",
        "FAIL_TO_PASS": '["t::a"]', "PASS_TO_PASS": ["t::b"], "created_at": 1_700_000_000_000,
        "install_config": {"python": "3.9", "install": "python -m pip install .[dev]", "pip_packages": ["x==1"],
                           "test_cmd": "pytest -rA", "env_vars": {"A": "1"}},
    }  # fmt: skip
    task = foreign_task(row, tables=False)
    assert (task.fail_to_pass, task.pass_to_pass) == (("t::a",), ("t::b",))
    assert task.created_at == "2023-11-14T22:13:20+00:00"
    assert task.install_config is not None
    assert task.install_config.install == ("pip install x==1", "pip install -e .[dev]")
    assert task.install_config.environment == {"A": "1"}
    assert foreign_task({**row, "FAIL_TO_PASS": ["t::a"], "created_at": "2023-11-14"}, False).created_at == "2023-11-14"


def test_swe_bench_s_tables_and_parsers_are_used_without_its_dependencies() -> None:
    spec = swe_bench_specs("pallets/flask", "2.3")
    assert spec is not None and spec["python"] == "3.11" and swe_bench_specs("no/such", "1") is None
    log = "test_one (app.tests.T) ... ok\ntest_two (app.tests.T) ... FAIL\n"
    assert swe_bench_parser("django/django")(log) == {
        "test_one (app.tests.T)": "passed",
        "test_two (app.tests.T)": "failed",
    }


def test_a_verdict_of_a_log_says_so(tmp_path: Path) -> None:
    """A task whose command is not pytest's own: gold resolves, and the verdict says that it was parsed."""
    from data_prep.environments.checkout import make_repository
    from data_prep.environments.environment import Environment
    from data_prep.environments.judge import Judge
    from data_prep.environments.scratch import ScratchNames
    from data_prep.environments.task import InstallConfig, Task

    tree, venv = tmp_path / "tree", tmp_path / "venv"
    venv.mkdir()
    tree.mkdir()
    (tree / "answer").write_text("41\n")
    (tree / "run.sh").write_text(
        "grep -q 42 answer && echo 'test_answer (t.T) ... ok' || echo 'test_answer (t.T) ... FAIL'\n"
    )
    make_repository(tree, "2024-01-01T00:00:00+00:00")
    gold = "diff --git a/answer b/answer\n--- a/answer\n+++ b/answer\n@@ -1 +1 @@\n-41\n+42\n"
    test = "diff --git a/tests/x b/tests/x\nnew file mode 100644\n--- /dev/null\n+++ b/tests/x\n@@ -0,0 +1 @@\n+x\n"
    config = InstallConfig("3.11", (), "bash run.sh", log_parser="django/django")
    task = Task(
        "a__b-1", "a/b", "0" * 40, gold, test, "p", "", fail_to_pass=("test_answer (t.T)",), install_config=config
    )
    place = Environment(tree, venv, Path("/usr"), swe_bench_parser("django/django"))
    judge = Judge(BubblewrapSandbox(), ScratchNames(tmp_path), "none")
    good = judge.judge(task, place, task.patch_bytes)
    assert (good.status, good.by) == ("resolved", "parsed")
    wrong = judge.judge(task, place, gold.replace("42", "43").encode())
    assert (wrong.status, wrong.by) == ("unresolved", "parsed")


def test_the_command_between_markers() -> None:
    assert (
        command_between_markers(": '>>>>> Start Test Output'\npytest -rA a.py\n: '>>>>> End Test Output'\n")
        == "pytest -rA a.py"
    )
    assert command_between_markers("pytest") == ""
