"""The parts of environments that no sandbox is needed for: patches as bytes, paths, recipes, what a candidate is."""

import random
import subprocess
from pathlib import Path

import orjson
import pytest

from data_prep import InputError
from data_prep.environments.candidates import _tells
from data_prep.environments.checkout import make_repository, read_in_tree, unpack
from data_prep.environments.collection import TaskCollection
from data_prep.environments.patches import joined, parse_patch, paths_of, split_patch
from data_prep.environments.paths import hides_runner, is_configuration, is_test, is_test_module
from data_prep.environments.recipes import choose_python, install_attempts, read_project
from data_prep.environments.task import Task, is_name
from data_prep.environments.validate import classify


def git(folder: Path, *arguments: str, stdin: bytes = b"") -> bytes:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, check=True).stdout


ODD_NAMES = [
    "a b.py",
    'quo"te.py',
    "tab\there.py",
    "ünicode.py",
    "new\nline.py",
    "back\\slash.py",
    "a/b/ b/c.py",
    "x b/y.py",
]


@pytest.mark.parametrize("seed", range(5))
def test_parts_of_real_patches_rebuild_them_byte_for_byte(tmp_path: Path, seed: int) -> None:
    draw, tree = random.Random(seed), tmp_path / "tree"
    tree.mkdir()
    contents = [b"one\n", b"two\r\nthree\r\n", b"form\x0cfeed\nno end", bytes(range(256)), b"diff --git a/x b/x\n", b""]
    for name in ODD_NAMES:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(draw.choice(contents))
    make_repository(tree, "")
    changed = draw.sample(ODD_NAMES, 5)
    for name in changed:
        if draw.random() < 0.3:
            (tree / name).unlink()
        else:
            (tree / name).write_bytes(draw.choice(contents) + b"changed\n")
    git(tree, "add", "-A")
    options = random.Random(seed).choice([["--no-renames"], ["-M"], ["--no-renames", "--binary", "--full-index"]])
    patch = git(tree, "diff", "--cached", *options)
    names = {name.decode() for name in git(tree, "diff", "--cached", "--name-only", "--no-renames", "-z").split(b"\0")}
    assert paths_of(patch) == names - {""}
    parts = parse_patch(patch)
    assert joined(parts) == patch and all(len(part.paths) in (1, 2) for part in parts)
    one, other = split_patch(patch, lambda part: hash(min(part.paths)) % 2 == 0)
    assert len(one) + len(other) == len(patch) and paths_of(one) | paths_of(other) == paths_of(patch)


def test_both_names_of_a_rename_and_of_a_copy_are_seen() -> None:
    patch = b"diff --git a/old.py b/tests/new.py\nsimilarity index 100%\nrename from old.py\nrename to tests/new.py\n"
    assert paths_of(patch) == {"old.py", "tests/new.py"}
    assert paths_of(patch.replace(b"rename", b"copy")) == {"old.py", "tests/new.py"}
    lying = b"diff --git a/x.py b/x.py\n--- a/x.py\n+++ b/tests/test_x.py\n@@ -1 +1 @@\n-a\n+b\n"
    assert "tests/test_x.py" in paths_of(lying)


HIDDEN = b"--- a/tests/conftest.py\n+++ b/tests/conftest.py\n@@ -0,0 +1 @@\n+evil\n"
OPEN = b"diff --git a/x.py b/x.py\n--- a/x.py\n+++ b/x.py\n@@ -1 +1 @@\n-a\n+b\n"


@pytest.mark.parametrize(
    "patch",
    [
        OPEN + HIDDEN,
        HIDDEN + OPEN,
        b"words\n" + HIDDEN + OPEN,
        OPEN + HIDDEN.replace(b"a/tests", b"tests").replace(b"b/tests", b"tests"),
    ],
)
def test_a_plain_patch_that_git_takes_with_another_is_seen(tmp_path: Path, patch: bytes) -> None:
    """git itself says that it would write the file."""
    tree = project(tmp_path / "p", x_dot_py="a\n", tests__a_dot_txt="x")
    make_repository(tree, "")
    git(tree, "apply", "-", stdin=patch)
    git(tree, "add", "-A")
    written = git(tree, "diff", "--cached", "--name-only", "HEAD").decode().split()
    assert len(written) == 2 and set(written) <= paths_of(patch) and any(map(is_configuration, written))


def test_lines_of_a_hunk_are_no_names() -> None:
    removed = OPEN.replace(b"@@ -1 +1 @@\n-a\n", b"@@ -1,2 +1 @@\n-a\n--- a/tests/test_x.py\n")
    assert paths_of(removed) == {"x.py"}


@pytest.mark.parametrize("patch", [b"hello\n", b"--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n", b"diff --git nothing\n"])
def test_what_is_no_git_patch_is_refused(patch: bytes) -> None:
    with pytest.raises(InputError, match=r"git diff|names no file"):
        paths_of(patch)


@pytest.mark.parametrize(
    "path, test, module, configuration",
    [
        ("tests/test_a.py", True, True, False),
        ("testing/benchmark.py", True, True, False),
        ("pkg/tests/data.json", True, False, False),
        ("pkg/a_test.py", True, True, False),
        ("tests/conftest.py", True, False, True),
        ("tests/__init__.py", True, False, False),
        ("conftest.py", True, False, True),
        ("inspect.py", False, False, False),
        ("latest.py", False, False, False),
        ("src/contest/a.py", False, False, False),
        ("attest/tests.py", True, True, False),
        ("protest.py", False, False, False),
        ("tox.ini", False, False, True),
        ("src/x.pth", False, False, True),
        ("src/sitecustomize.py", False, False, True),
        ("sub/pyproject.toml", False, False, True),
        ("src/a.egg-info/entry_points.txt", False, False, True),
        ("src/A.DIST-INFO/entry_points.txt", False, False, True),
        ("src/sitecustomize/__init__.py", False, False, True),
        ("PyProject.toml", False, False, True),
    ],
)
def test_what_a_path_is_for(path: str, test: bool, module: bool, configuration: bool) -> None:
    assert (is_test(path), is_test_module(path), is_configuration(path)) == (test, module, configuration)


@pytest.mark.parametrize(
    "path, hides",
    [
        ("pytest.py", True), ("_pytest/x.py", True), ("src/pluggy/a.py", True), ("lib/py.py", True),
        ("src/pytests/a.py", False), ("app/pytest.py", False), ("src/app/py.py", False), ("pytest_plugin.py", False),
        ("src/json.py", True), ("json/__init__.py", True), ("pytest.pyc", True), ("src/app/json.py", False),
        ("json.md", False),
    ],
)  # fmt: skip
def test_what_would_be_imported_for_the_test_runner(path: str, hides: bool) -> None:
    assert hides_runner(path) == hides


def project(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_what_installing_needs_is_read_from_each_kind_of_project(tmp_path: Path) -> None:
    modern = read_project(project(
        tmp_path / "modern",
        pyproject_dot_toml="[project]\nname='x'\nrequires-python='>=3.8,<3.12'\n"
        "[project.optional-dependencies]\ntest=['a']\nall=['b']\n[dependency-groups]\ndev=['c']\n",
    ))  # fmt: skip
    assert (modern.extras, modern.groups, modern.packages) == (("test",), ("dev",), ("pytest",))
    old = read_project(project(
        tmp_path / "old",
        setup_dot_py="setup(extras_require={'testing': ['a']}, python_requires='>=3.5')\n"
        "# Programming Language :: Python :: 3.6",
        tox_dot_ini="[testenv]\ndeps =\n  pytest\n  mock>=2\n  -r requirements.txt\n  {env:X}\n  py36: y\n"
        "  evil; touch x\n",
        requirements_dot_txt="z\n", requirements__tests_dot_txt="t\n",
    ))  # fmt: skip
    assert old.extras == ("testing",) and old.packages == ("pytest", "mock>=2")
    assert old.requirements == ("requirements/tests.txt",) and "3.6" in old.named_pythons
    broken = read_project(project(tmp_path / "broken", pyproject_dot_toml="[project", setup_dot_cfg="no section\n"))
    assert (broken.extras, broken.packages) == ((), ("pytest",))


@pytest.mark.parametrize(
    "required, named, day, chosen",
    [
        ("", "", "2024-06-01", "3.12"),
        ("", "", "2024-03-01", "3.11"),  # 3.12 had been out for five months
        (">=3.8,<3.10", "", "2024-06-01", "3.9"),
        ("", "Python :: 3.8", "2024-06-01", "3.8"),
        (">=3.99", "", "2024-06-01", "3.12"),  # none will do: the newest of its time is tried
        ("", "", "2010-01-01", "3.6"),
    ],
)
def test_the_interpreter_is_one_of_the_time(tmp_path: Path, required: str, named: str, day: str, chosen: str) -> None:
    text = f"[project]\nname='x'\nrequires-python='{required}'\n# {named}\n"
    found = read_project(project(tmp_path / "p", pyproject_dot_toml=text))
    assert choose_python(found, day, ["3.13", "3.6", "3.8", "3.9", "3.11", "3.12"]) == chosen
    assert choose_python(found, day, []) is None


def test_attempts_go_from_the_fullest_to_the_barest(tmp_path: Path) -> None:
    text = "[project]\nname='x'\n[project.optional-dependencies]\ntest=['a']\n"
    found = read_project(project(tmp_path / "p", pyproject_dot_toml=text, requirements_dot_txt="z"))
    attempts = install_attempts(found, "2020-01-01")
    assert attempts[0][0].endswith("-e '.[test]' 'pytest'") and "setuptools=2023-06-01" in attempts[0][0]
    assert "exclude-newer-package" not in install_attempts(found, "2024-01-01")[0][0]
    assert len(attempts) == 5  # two would be one and the same


def test_links_of_a_stranger_s_tree_are_not_followed(tmp_path: Path) -> None:
    tree = project(tmp_path / "p", inner__a_dot_txt="here")
    (tmp_path / "secret").write_text("secret")
    (tree / "setup.py").symlink_to(tmp_path / "secret")
    (tree / "out").symlink_to(tmp_path)
    assert read_in_tree(tree, "setup.py") == read_in_tree(tree, "out/secret") == read_in_tree(tree, "absent") == ""
    assert read_in_tree(tree, "inner/a.txt") == "here"


def test_an_archive_with_a_history_or_a_way_out_is_refused(tmp_path: Path) -> None:
    tree = project(tmp_path / "with", a_dot_txt="x")
    make_repository(tree, "")
    subprocess.run(["tar", "-cf", tmp_path / "a.tar", "-C", tree, "."], check=True)
    with pytest.raises(InputError, match=r"holds a \.git"):
        unpack(tmp_path / "a.tar", tmp_path / "one", "")
    (tmp_path / "out.txt").write_text("x")
    subprocess.run(["tar", "-cPf", tmp_path / "b.tar", "-C", tree, "../out.txt"], check=True)
    with pytest.raises(InputError, match="cannot be unpacked"):
        unpack(tmp_path / "b.tar", tmp_path / "two", "")


@pytest.mark.parametrize(
    "before, after, tells",
    [
        ("def test_a(): pass", "def test_a(): pass\ndef test_b(): pass", True),
        ("def test_a(): pass", "def test_a(): assert 1", True),
        ("def test_a(): pass\ndef test_b(): pass", "def test_a(): pass", False),
        ("def test_a(x): y = 1", "def test_a(x: int) -> None:\n    'Words.'\n    y: int = 1", False),
        ("class T:\n  def test_a(self): pass", "class T:\n  def test_a(self): pass\n  def test_b(self): pass", True),
        ("import a\ndef test_a(): pass", "import b\ndef test_a(): pass", False),
        ("@mark\ndef test_a(): pass", "@other\ndef test_a(): pass", True),
        ("print 'two'", "print 'three'", True),
        ("print 'two'", "print 'two'", False),
    ],
)
def test_whether_a_change_of_tests_tells(before: str, after: str, tells: bool) -> None:
    assert _tells(before, after) == tells


def test_runs_that_disagree_put_a_test_into_no_list() -> None:
    before = [{"a": "failed", "b": "passed", "c": "failed", "d": "passed", "e": "passed"}] * 2
    after = [
        {"a": "passed", "b": "passed", "c": "passed", "d": "failed", "e": "skipped", "f": "xfailed"},
        {"a": "passed", "b": "passed", "c": "failed", "d": "failed", "e": "skipped", "f": "xfailed"},
    ]
    found = classify(before, after)
    assert (found.fail_to_pass, found.pass_to_pass, found.unstable) == (("a", "f"), ("b",), ("c",))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "a\n", "x" * 201, "-rf/", "ü"])
def test_names_that_are_no_names_of_files(name: str) -> None:
    assert not is_name(name)
    held = {
        "instance_id": name,
        "repo": "a/b",
        "base_commit": "0",
        "patch": "",
        "test_patch": "",
        "problem_statement": "",
    }
    with pytest.raises(InputError, match="not a task"):
        Task.from_json(held)


def test_a_record_is_the_same_after_a_round_trip() -> None:
    held = {
        "instance_id": "a__b-1", "repo": "a/b", "base_commit": "0", "patch": "p", "test_patch": "t",
        "problem_statement": "s", "FAIL_TO_PASS": ["x"], "PASS_TO_PASS": '["y"]', "created_at": None,
    }  # fmt: skip
    task = Task.from_json(held)
    assert Task.from_json(task.to_json()) == task and task.pass_to_pass == ("y",)


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "../../../../etc"}, {"fingerprint": 5}, {"test_files": [1]}, {"validated_with": {"planted": 5}},
        {"validated_with": "x"}, {"FAIL_TO_PASS": ["a\0"]}, {"install_config": {"python": "3.11", "test_cmd": "a\0"}},
        {"install_config": {"python": "3.11", "environment": {"A\0": "x"}}}, {"instance_id": "../../x"},
    ],
)  # fmt: skip
def test_a_record_that_would_lead_astray_is_none(change: dict[str, object]) -> None:
    held = dict.fromkeys(("instance_id", "repo", "base_commit", "patch", "test_patch", "problem_statement"), "a__b-1")
    held |= {"install_config": {"python": "3.11", "test_cmd": "pytest"}, "fingerprint": "f"}
    Task.from_json(held)
    with pytest.raises(InputError, match="not a task"):
        Task.from_json({**held, **change})


def test_a_collection_gives_no_task_that_any_patch_would_resolve(tmp_path: Path) -> None:
    held = dict.fromkeys(("instance_id", "repo", "base_commit", "patch", "test_patch", "problem_statement"), "a__b-1")
    folder = tmp_path / "envs" / "tasks" / "a__b-1"
    folder.mkdir(parents=True)
    config = {"python": "3.11", "test_cmd": "pytest"}
    for change in ({"FAIL_TO_PASS": ["t"]}, {"install_config": config}):
        (folder / "task.json").write_bytes(orjson.dumps({**held, **change}))
        with pytest.raises(InputError, match="no recipe, or no test that must pass"):
            TaskCollection(tmp_path / "envs").task("a__b-1")
    with pytest.raises(InputError, match="has no task"):
        TaskCollection(tmp_path / "envs").task("../tasks/a__b-1")
