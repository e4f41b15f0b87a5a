"""Each attack succeeds with a judge that has no protection, and fails with ours."""

import re
import subprocess
from pathlib import Path

import orjson
import pytest
from attacks import ATTACKS, FORGED_REPORT, SQUARE, WRAPPED_PLUGIN, XFAIL, Attack, patch_of, unprotected
from shapes import FIXED

from data_prep.environments import judge as judging
from data_prep.environments import testing
from data_prep.environments.collection import TaskCollection
from data_prep.environments.judge import Judge, Verdict
from data_prep.environments.sandbox.bubblewrap import BubblewrapSandbox
from data_prep.environments.scratch import ScratchNames


@pytest.fixture(scope="module")
def sandbox() -> BubblewrapSandbox:
    return BubblewrapSandbox()


def verdict_on(attack: Attack, tasks: TaskCollection, sandbox: BubblewrapSandbox, folder: Path) -> Verdict:
    task = tasks.task(attack.task)
    place = tasks.environment(task)
    patch = patch_of(place.tree, attack.files, folder / "attacked")
    return Judge(sandbox, ScratchNames(folder), "none").judge(task, place, patch)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_wins_without_protection_and_loses_with_it(
    tasks: TaskCollection, sandbox: BubblewrapSandbox, tmp_path: Path, name: str
) -> None:
    attack = ATTACKS[name]
    task = tasks.task(attack.task)
    place = tasks.environment(task)
    patch = patch_of(place.tree, attack.files, tmp_path / "for unprotected")
    assert unprotected(sandbox, tmp_path / "state", task, place, patch, attack.by), "the attack has no teeth"
    verdict = verdict_on(attack, tasks, sandbox, tmp_path)
    assert verdict.status in ("unresolved", "tampered"), verdict


def test_the_right_change_is_resolved_and_an_empty_one_is_not(
    tasks: TaskCollection, sandbox: BubblewrapSandbox, tmp_path: Path
) -> None:
    right = verdict_on(Attack({"src/shapes/area.py": FIXED}), tasks, sandbox, tmp_path)
    assert right == Verdict(SQUARE, "resolved", seconds=right.seconds)
    task = tasks.task(SQUARE)
    empty = Judge(sandbox, ScratchNames(tmp_path), "none").judge(task, tasks.environment(task), b"")
    assert (empty.status, empty.reason) == ("empty", "the patch is empty")


def test_what_is_the_judge_s_is_left_out_and_told(
    tasks: TaskCollection, sandbox: BubblewrapSandbox, tmp_path: Path
) -> None:
    files = {"src/shapes/area.py": FIXED, "tests/test_area.py": "def test_square(): pass\n", "conftest.py": "x = 1\n"}
    verdict = verdict_on(Attack(files), tasks, sandbox, tmp_path)
    assert verdict.resolved and set(verdict.dropped) == {"tests/test_area.py", "conftest.py"}


def test_a_forged_report_is_seen_by_its_signatures_alone(
    tasks: TaskCollection, sandbox: BubblewrapSandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict = verdict_on(FORGED_REPORT, tasks, sandbox, tmp_path)
    assert verdict.status == "tampered" and "not signed" in verdict.reason
    monkeypatch.setattr(testing.hmac, "compare_digest", lambda one, other: True)
    (tmp_path / "unsigned").mkdir()
    assert verdict_on(FORGED_REPORT, tasks, sandbox, tmp_path / "unsigned").resolved


def test_patched_reports_are_seen_by_planted_tests_alone(
    tasks: TaskCollection, sandbox: BubblewrapSandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = ATTACKS["patched reports, in other words"]
    verdict = verdict_on(attack, tasks, sandbox, tmp_path)
    assert verdict.status == "tampered" and "must fail did not" in verdict.reason
    monkeypatch.setattr(testing, "plant", lambda content, taken: (content, []))
    monkeypatch.setattr(judging, "_silent", lambda task, seen: "")
    (tmp_path / "unplanted").mkdir()
    assert verdict_on(attack, tasks, sandbox, tmp_path / "unplanted").resolved


def test_a_plain_patch_behind_another_changes_no_test(
    tasks: TaskCollection, sandbox: BubblewrapSandbox, tmp_path: Path
) -> None:
    task = tasks.task(SQUARE)
    place = tasks.environment(task)
    open_part = patch_of(place.tree, {"src/shapes/round.py": "# nothing\n"}, tmp_path / "one")
    hidden = ATTACKS["conftest"].files["conftest.py"] or ""
    lines = hidden.split("\n")[:-1]
    plain = f"--- /dev/null\n+++ b/conftest.py\n@@ -0,0 +1,{len(lines)} @@\n" + "".join(f"+{line}\n" for line in lines)
    patch = open_part + plain.encode()
    assert unprotected(sandbox, tmp_path / "state", task, place, patch, "passed"), "the attack has no teeth"
    verdict = Judge(sandbox, ScratchNames(tmp_path), "none").judge(task, place, patch)
    assert verdict.status == "unresolved" and "conftest.py" in verdict.dropped


def test_what_git_reads_otherwise_than_we_do_is_tampered(
    tasks: TaskCollection, sandbox: BubblewrapSandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault is a reader that sees one name of all."""
    task = tasks.task(SQUARE)
    place = tasks.environment(task)
    patch = patch_of(place.tree, {"src/shapes/area.py": FIXED, "src/shapes/round.py": "# x\n"}, tmp_path / "two")
    taken = judging.taken_of(patch, task, place.tree)
    judge = Judge(sandbox, ScratchNames(tmp_path), "none")
    assert judge.judge_taken(task, place, taken).resolved
    monkeypatch.setattr(judging, "paths_of", lambda content: frozenset({"src/shapes/area.py", *task.test_files}))
    verdict = judge.judge_taken(task, place, taken)
    assert verdict.status == "tampered" and "writes src/shapes/round.py" in verdict.reason


def test_code_under_test_cannot_call_failures_expected(
    tasks: TaskCollection, sandbox: BubblewrapSandbox, tmp_path: Path
) -> None:
    verdict = verdict_on(XFAIL, tasks, sandbox, tmp_path)
    assert verdict.status == "unresolved" and len(verdict.failed["FAIL_TO_PASS"]) > 0


def test_code_that_cannot_be_read_is_kept_apart(
    tasks: TaskCollection, sandbox: BubblewrapSandbox, tmp_path: Path
) -> None:
    task = tasks.task(SQUARE)
    tree = tasks.environment(task).tree
    subprocess.run(["cp", "-a", tree, tmp_path / "tree"], check=True)
    (tmp_path / "tree" / "src" / "shapes" / "area.py").write_bytes(FIXED.encode() + b"# \0\n")
    command = ["git", "-C", tmp_path / "tree", "diff", "--binary"]
    patch = subprocess.run(command, capture_output=True, check=True).stdout
    verdict = Judge(sandbox, ScratchNames(tmp_path), "none").judge(task, tasks.environment(task), patch)
    assert verdict.status == "tampered" and "src/shapes/area.py" in verdict.reason


def test_the_plugin_has_nothing_to_be_wrapped(
    tasks: TaskCollection, sandbox: BubblewrapSandbox, tmp_path: Path
) -> None:
    verdict = verdict_on(WRAPPED_PLUGIN, tasks, sandbox, tmp_path)
    assert verdict.status in ("unresolved", "tampered")
    plugin = (Path(testing.__file__).parent / "plugin" / "davinci_report.py").read_text()
    assert not re.search(r"^_?put\b|^_?state\b|^_?key\b", plugin, re.MULTILINE)


DEEP = "import os\nos.chdir('/tmp')\nfor _ in range(3000):\n    os.mkdir('d')\n    os.chdir('d')\nos.chdir('/')\n"


@pytest.mark.parametrize(
    "files, status",
    [
        ({"src/shapes/__init__.py": DEEP}, "unresolved"),
        ({"src/shapes/__init__.py": "raise SystemExit(125)\n"}, "unresolved"),
        ({"src/shapes/__init__.py": "raise SystemExit(1)\n"}, "unresolved"),
        ({"src/shapes/fast.pyc": "x"}, "tampered"),
    ],
)
def test_what_a_patch_does_is_never_the_machine_s_fault(
    tasks: TaskCollection, sandbox: BubblewrapSandbox, tmp_path: Path, files: dict[str, str], status: str
) -> None:
    verdict = verdict_on(Attack(files), tasks, sandbox, tmp_path)
    assert verdict.status == status, verdict
    ScratchNames(tmp_path).close()
    assert not (tmp_path / ".sessions").exists()


@pytest.mark.parametrize(
    "patch, status",
    [
        (b"diff --git a/. b/.\n--- a/.\n+++ b/.\n@@ -1 +1 @@\n-a\n+b\n", "unresolved"),
        (b'diff --git "a/tests/\\377.py" "b/tests/\\377.py"\nnew file mode 100644\n--- /dev/null\n'
         b'+++ "b/tests/\\377.py"\n@@ -0,0 +1 @@\n+a\n', "unresolved"),
        (b"diff --git a/src/zz.txt b/src/zz.txt\nrename old pyproject.toml\nrename new src/zz.txt\n", "unresolved"),
        (b"diff --git a/x b/x\nGIT binary patch\nliteral 5\nnonsense\n", "unresolved"),
    ],
)  # fmt: skip
def test_odd_patches_get_a_verdict_that_json_can_hold(
    tasks: TaskCollection, sandbox: BubblewrapSandbox, tmp_path: Path, patch: bytes, status: str
) -> None:
    task = tasks.task(SQUARE)
    verdict = Judge(sandbox, ScratchNames(tmp_path), "none").judge(task, tasks.environment(task), patch)
    assert verdict.status == status, verdict
    orjson.dumps(verdict)
    assert "rename" not in patch.decode() or "pyproject.toml" in verdict.dropped


def test_a_file_whose_name_is_no_text_keeps_nobody_from_the_right_change(
    tasks: TaskCollection, sandbox: BubblewrapSandbox, tmp_path: Path
) -> None:
    task = tasks.task(SQUARE)
    odd = b'diff --git "a/src/\\377.txt" "b/src/\\377.txt"\nnew file mode 100644\n--- /dev/null\n'
    odd += b'+++ "b/src/\\377.txt"\n@@ -0,0 +1 @@\n+a\n'
    judge = Judge(sandbox, ScratchNames(tmp_path), "none")
    assert judge.judge(task, tasks.environment(task), task.patch_bytes + odd).resolved


def test_words_of_the_runner_s_insides_keep_a_patch_apart(
    tasks: TaskCollection, sandbox: BubblewrapSandbox, tmp_path: Path
) -> None:
    files = {"src/shapes/area.py": FIXED + "\n# as _pytest has it\n"}
    verdict = verdict_on(Attack(files), tasks, sandbox, tmp_path)
    assert verdict.status == "tampered" and "names _pytest" in verdict.reason
