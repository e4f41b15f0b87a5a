"""Records to tasks: exact lists of tests, a reason for everything else, the same bytes after kills."""

import hashlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pluggy_yield
import pytest
from commands import davinci, davinci_words, skip_without_sandbox
from conftest import EFFORT, of_acceptance
from scripted_model import scripted_model
from shapes import PULL_REQUESTS, History

from data_prep.changes.shards import read_changes, write_records
from data_prep.environments.collection import TaskCollection
from data_prep.environments.interpreters import interpreters, minor
from data_prep.environments.proposals import KnownRecipes, recipe_in
from data_prep.io.files import read_json, read_jsonl

# By pull request of pluggy: the version of Python, the file of its tests, the tests that the change makes pass.
PLUGGY: dict[int, tuple[str, str, list[str]]] = {
    189: ("3.7", "test_pluginmanager", ["test_load_setuptools_instantiation"]),
    206: ("3.7", "test_pluginmanager", [
        "test_load_setuptools_instantiation", "test_load_setuptools_not_installed",
        "test_load_setuptools_version_conflict",
    ]),
    251: ("3.7", "test_hookcaller", [
        "test_hookrelay_registration_by_specname", "test_hookrelay_registration_by_specname_raises",
    ]),
    348: ("3.9", "test_pluginmanager", ["test_historic_with_subset_hook_caller", "test_subset_hook_caller"]),
    471: ("3.11", "test_pluginmanager", ["test_set_blocked"]),
    481: ("3.11", "test_pluginmanager", ["test_set_blocked"]),
    495: ("3.11", "test_details", ["test_warn_when_deprecated_args_specified"]),
    646: ("3.13", "test_pluginmanager", ["test_get_hookcallers_no_duplicates"]),
}  # fmt: skip


def files_of(folder: Path) -> dict[str, str]:
    """What has to be the same however a build went: tasks, trees, reasons."""
    found = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        odd = {".git", "summary.json", "build.log"} & set(relative.parts) or relative.parts[0] == "environments"
        if path.is_file() and not odd:
            found[str(relative)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def test_every_change_ends_as_a_task_or_with_a_reason(shapes_envs: Path, tasks: TaskCollection) -> None:
    assert tasks.ids() == ["geometry__shapes-1", "geometry__shapes-2"]
    rejected = {line["id"]: line["reason"] for line in read_jsonl(shapes_envs / "rejected.jsonl")}
    assert rejected == {
        "geometry__shapes-3": "no_test_fails_before_and_passes_after",
        "geometry/shapes#4": "no_test_is_new_or_changed",
        "geometry/shapes#5": "no_python_code",
    }
    assert len(rejected) + len(tasks.ids()) == len(PULL_REQUESTS)
    summary = read_json(shapes_envs / "summary.json")
    assert summary["candidates"] == 3 and summary["tasks"] == 2 and summary["environments"] == 1
    assert not list(shapes_envs.rglob("*.part")) and not (shapes_envs / "environments" / ".cache").exists()


def test_a_task_says_what_was_seen(tasks: TaskCollection, shapes_records: tuple[Path, Path]) -> None:
    square, perimeter = tasks.tasks()
    assert square.fail_to_pass == ("tests/test_area.py::test_square",) or square.flags
    assert perimeter.fail_to_pass == ("tests/test_perimeter.py::test_perimeter",)
    assert perimeter.pass_to_pass == () and set(perimeter.flags) == {"collection_fails_before", "no_pass_to_pass"}
    assert "+    return a * a" in square.patch and "test_" not in square.patch
    assert "test_square" in square.test_patch and "src/" not in square.test_patch
    assert square.problem_statement.startswith("Area of a square") or "Area of a square" in square.problem_statement
    git = ["git", "-C", shapes_records[0]]
    parents = subprocess.run([*git, "log", "--format=%P", "-1", square.head_commit], capture_output=True, text=True)
    assert parents.stdout.split()[0] == square.base_commit  # of a merge, its first parent
    assert square.install_config is not None and square.install_config.exclude_newer == "2024-03-01"
    assert any(line.startswith("pytest==8.0") for line in square.pip_freeze)  # 8.1 came in March


def test_what_installing_made_lies_beside_the_checkout_and_is_no_change(tasks: TaskCollection) -> None:
    for task in tasks.tasks():
        tree = tasks.environment(task).tree
        assert (tree / "src" / "shapes.egg-info" / "PKG-INFO").is_file()
        described = subprocess.run(["git", "-C", tree, "status", "--porcelain", "--ignored"], capture_output=True)
        assert described.stdout == b"!! src/shapes.egg-info/\n"


def test_only_the_base_is_in_the_checkout(tasks: TaskCollection) -> None:
    task = tasks.task("geometry__shapes-1")
    tree = tasks.environment(task).tree
    git = ["git", "-C", str(tree)]
    assert subprocess.run([*git, "cat-file", "-e", task.head_commit], capture_output=True).returncode != 0
    assert subprocess.run([*git, "rev-list", "--all", "--count"], capture_output=True).stdout == b"1\n"
    assert subprocess.run([*git, "status", "--porcelain"], capture_output=True).stdout == b""


def build(records: Path, clone: Path, out: Path, *options: str) -> "subprocess.Popen[str]":
    words = davinci_words("environments", "build", records, "--clone", clone, "--out", out, *options)
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_and_started_again_it_ends_the_same(
    shapes_envs: Path, shapes_records: tuple[Path, Path], tmp_path: Path
) -> None:
    clone, records = shapes_records
    draw, out, kills = random.Random(4), tmp_path / "envs", 0
    for pause in sorted(draw.uniform(1.0, 9.0) for _ in range(2 * EFFORT)):
        process = build(records, clone, out)
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        if out.exists():
            break
    assert kills
    if not out.exists():
        last = build(records, clone, out)
        said = last.communicate()
        assert last.returncode == 0, said
    assert files_of(out) == files_of(shapes_envs)
    mounted = Path("/proc/mounts").read_text()
    assert str(tmp_path) not in mounted and not list(tmp_path.rglob("*.part"))


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk is mounted for it, which needs root")
def test_a_full_disk_is_one_sentence_and_with_room_it_ends_the_same(
    shapes_envs: Path, shapes_records: tuple[Path, Path], tmp_path: Path
) -> None:
    """And no task is left out for it."""
    clone, records = shapes_records
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", disk]).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        first = build(records, clone, disk / "envs")
        _, said = first.communicate()
        assert first.returncode == 1 and "is full" in said and "Traceback" not in said, said
        subprocess.run(["mount", "-o", "remount,size=400m", disk], check=True)
        second = build(records, clone, disk / "envs")
        _, said = second.communicate()
        assert second.returncode == 0, said
        assert files_of(disk / "envs") == files_of(shapes_envs)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_no_worker_outlives_a_killed_command(shapes_records: tuple[Path, Path], tmp_path: Path) -> None:
    clone, records = shapes_records
    process = build(records, clone, tmp_path / "envs", "--tasks", "2", "--workers", "2")
    end = time.monotonic() + 60
    while not (workers := workers_below(tmp_path)) and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)  # which ends when nobody holds its output any more
    assert workers
    end = time.monotonic() + 30
    while (left := workers_below(tmp_path)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not left, left


def workers_below(folder: Path) -> list[str]:
    """Names of directories of sessions whose processes live: each worker has one, by its number."""
    found = folder.glob("envs.part/.sessions/*")
    return [path.name for path in found if Path("/proc", path.name.rpartition(".")[2]).exists()]


def test_two_builders_make_one_environment(
    shapes_envs: Path, shapes_records: tuple[Path, Path], tmp_path: Path
) -> None:
    clone, records = shapes_records
    done = build(records, clone, tmp_path / "envs", "--tasks", "2", "--workers", "2")
    said = done.communicate()
    assert done.returncode == 0, said
    assert files_of(tmp_path / "envs") == files_of(shapes_envs)
    assert len([path for path in (tmp_path / "envs" / "environments").iterdir() if path.is_dir()]) == 1


@of_acceptance
def test_the_tests_of_real_tasks_are_known_exactly(pluggy_clone: Path, tmp_path: Path) -> None:
    skip_without_sandbox(tmp_path)
    if missing := {version for version, _, _ in PLUGGY.values()} - interpreters().keys():
        pytest.skip(f"Python {', '.join(sorted(missing))} is not at hand")
    done = davinci("collect", "git", pluggy_clone, "--name", "pytest-dev/pluggy", "--out", tmp_path / "all")
    assert done.returncode == 0, done.stderr
    [shard] = (tmp_path / "all" / "records").iterdir()
    chosen = (change for change in read_changes(shard) if change.number in PLUGGY)
    write_records(chosen, tmp_path / "some" / "records", lambda count: None)
    building = build(tmp_path / "some", pluggy_clone, tmp_path / "envs", "--tasks", "2", "--workers", "2")
    said = building.communicate()
    assert building.returncode == 0, said
    found = {}
    for task in TaskCollection(tmp_path / "envs").tasks():
        assert task.install_config is not None and task.pass_to_pass and not task.unstable
        files = {test.partition("::")[0] for test in task.fail_to_pass}
        [file] = files
        names = [test.partition("::")[2] for test in task.fail_to_pass]
        found[int(task.instance_id.rpartition("-")[2])] = (
            task.install_config.python, Path(file).stem, names,
        )  # fmt: skip
    assert found == PLUGGY
    kept = list((tmp_path / "envs" / "environments").glob("*/venv/**/*.pyc"))
    assert max(path.stat().st_nlink for path in kept) > 1  # environments share what they have in common


def test_a_model_s_recipe_is_tried_where_heuristics_fail(tmp_path: Path) -> None:
    """Its first answer is none, with its second the tests do not run, with its third they do. Then another directory
    starts from that recipe, and asks nothing.
    """
    history = History(tmp_path / "shapes")
    history.git("checkout", "-q", "-b", "undeclared")
    history.commit(
        "Points",
        {
            "src/shapes/point.py": "import attr\n\n\n@attr.s\nclass Point:\n    x = attr.ib()\n",
            "tests/test_point.py":
                "from shapes.point import Point\n\n\ndef test_point():\n    assert Point(1).x == 1\n",
        },
    )  # fmt: skip
    history.git("checkout", "-q", "main")
    history.git(
        "merge", "-q", "--no-ff", "-m", "Merge pull request #9 from geometry/undeclared\n\nPoints", "undeclared"
    )
    done = davinci("collect", "git", tmp_path / "shapes", "--out", tmp_path / "all")
    assert done.returncode == 0, done.stderr
    [shard] = (tmp_path / "all" / "records").iterdir()
    chosen = (change for change in read_changes(shard) if change.number == 9)
    write_records(chosen, tmp_path / "records" / "records", lambda count: None)
    version = max(interpreters(), key=minor)
    wrong = {"python": version, "install": ["pip install -e . pytest"]}
    right = {"python": version, "install": ["pip install -e . pytest attrs"]}
    answers = ["I would use poetry.", json.dumps(wrong), f"Here it is: {json.dumps(right)}"]
    arguments = ["environments", "build", tmp_path / "records", "--clone", tmp_path / "shapes", "--out"]
    with scripted_model(answers) as (server, asked):
        done = davinci(*arguments, tmp_path / "envs", "--server", server, "--model", "m")
    assert done.returncode == 0, done.stderr
    [task] = TaskCollection(tmp_path / "envs").tasks()
    assert task.fail_to_pass == ("tests/test_point.py::test_point",) and "recipe_of_a_model" in task.flags
    said = [request["messages"][1]["content"] for request in asked]
    assert "No module named 'attr'" in said[0] and "was in answer 1" in said[1] and "pyproject.toml" in said[2]
    proposals = list(read_jsonl(tmp_path / "envs" / "proposals.jsonl"))
    assert [each["outcome"] for each in proposals] == ["no_recipe", "tests_do_not_run", "task"]
    cost = read_json(tmp_path / "envs" / "summary.json")["proposals"]
    assert (cost["calls"], cost["tasks"], cost["prompt_tokens"], cost["completion_tokens"]) == (3, 1, 300, 30)
    without = davinci(*arguments, tmp_path / "none")
    assert without.returncode == 0 and not TaskCollection(tmp_path / "none").ids()
    later = KnownRecipes([tmp_path / "envs"]).nearest_earlier(task.repo, "2025", "2025-01-01")
    assert later is not None and later.install == tuple(right["install"]) and later.exclude_newer == "2025-01-01"
    assert KnownRecipes([tmp_path / "envs"]).nearest_earlier(task.repo, task.created_at, "2024-01-01") is None


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]",
        '{"python": "2.99", "install": ["x"]}', '{"python": "3.11"}', '{"python": "3.11", "install": "x"}',
        '{"python": "3.11", "install": []}', '{"python": "3.11", "install": [1]}',
        '{"python": "3.11", "install": [""]}', json.dumps({"python": "3.11", "install": ["x"] * 21}),
        json.dumps({"python": "3.11", "install": ["x" * 2001]}),
    ],
)  # fmt: skip
def test_answers_that_are_no_recipe(text: str) -> None:
    assert recipe_in(text, "2024-01-01") is None


@of_acceptance
def test_most_of_a_real_history_becomes_tasks(pluggy_clone: Path, tmp_path: Path) -> None:
    done = davinci("collect", "git", pluggy_clone, "--name", "pytest-dev/pluggy", "--out", tmp_path / "all")
    assert done.returncode == 0, done.stderr
    building = build(tmp_path / "all", pluggy_clone, tmp_path / "envs", "--tasks", "2", "--workers", "2")
    said = building.communicate()
    assert building.returncode == 0, said
    assert pluggy_yield.main(tmp_path / "envs") == 0


@pytest.mark.parametrize(
    "options, said",
    [
        (["--runs", "1"], "--runs is 1; it must be at least 2"),
        (["--sandbox", "jail"], "sandbox 'jail' is unknown"),
        (["--without", "wings"], "--without wings: it must be one of"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    shapes_records: tuple[Path, Path], tmp_path: Path, options: list[str], said: str
) -> None:
    clone, records = shapes_records
    done = davinci("environments", "build", records, "--clone", clone, "--out", tmp_path / "envs", *options)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "envs").exists()


def test_a_clone_of_another_repository_is_refused_and_leaves_nothing(
    shapes_records: tuple[Path, Path], tmp_path: Path
) -> None:
    _, records = shapes_records
    History(tmp_path / "other")
    for command in (["checkout", "-q", "--orphan", "new"], ["commit", "-q", "--allow-empty", "-m", "nothing of it"]):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *who, *command], cwd=tmp_path / "other", check=True)
    alone = tmp_path / "alone.git"
    source = f"file://{tmp_path / 'other'}"
    subprocess.run(["git", "clone", "-q", "--bare", "--single-branch", "-b", "new", source, str(alone)], check=True)
    words = ["environments", "build", str(records), "--clone", str(alone), "--out", str(tmp_path / "envs")]
    done = davinci(*words)
    assert done.returncode == 2 and "give the clone that the records were collected from" in done.stderr, done.stderr
    assert not list(tmp_path.glob("envs*"))
