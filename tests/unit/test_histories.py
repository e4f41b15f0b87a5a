"""Histories as the world has them: every pull request is a record, rejected, or said not to have landed."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from test_git_source import Repository
from test_samples import TALK, change_of

from data_prep import InputError
from data_prep.changes.record import Change, Commit, FileChange
from data_prep.changes.shards import read_changes
from data_prep.io.files import read_jsonl
from data_prep.samples.anonymize import FullNames
from data_prep.samples.filters import is_python_or_documentation, reject_general, reject_python
from data_prep.samples.formats import SAMPLE_FORMATS, samples_of
from data_prep.sources.collect import collect_git
from data_prep.sources.git import GitSource
from data_prep.sources.structure import Folder, structure_of


class History(Repository):
    """A repository with pull requests: each branch is from the main line, its head under refs/pull."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.commit("start", {"a.py": b"one\ntwo\nthree\n", "LICENSE": MIT, "docs/index.md": b"x\n"})

    def branch(self, number: int, *files: dict[str, bytes | None], author: str = "A Person") -> None:
        self.git("checkout", "-q", "-b", f"pr{number}", "main")
        for step, contents in enumerate(files):
            self.commit(f"step {step} of {number}", contents)
            self.git("commit", "-q", "--amend", "--no-edit", "--author", f"{author} <p@example.com>")
        self.git("update-ref", f"refs/pull/{number}/head", "HEAD")
        self.git("checkout", "-q", "main")

    def merge(self, number: int, message: str) -> None:
        self.git("merge", "-q", "--no-ff", "-m", message, f"pr{number}")

    def squash(self, number: int, message: str) -> None:
        self.git("merge", "-q", "--squash", f"pr{number}")
        self.git("commit", "-q", "-m", message)


MIT = b"""MIT License

Copyright (c) 2024 A Person

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "history")


@pytest.mark.parametrize("heads", [True, False])
@pytest.mark.parametrize(
    "message, title, body, needs_heads",
    [
        ("Merge pull request #1 from ann/pr1\n\nA title", "A title", "", False),
        ("Merge pull request #1 from ann/pr1", "step 0 of 1", "", False),
        ("Merge pull request #1 from ann/pr1\n\nA title\n\nWhy\n", "A title", "Why", False),
        ("A title (#1)", "A title", "", False),
        ("A title (#1)\n\nWhy", "A title", "Why", False),
        ("Ann's own words\n\nWhy", "Ann's own words", "Why", True),
        ("Merge branch 'pr1'", "step 0 of 1", "", True),
    ],
)
def test_a_merge_is_known_under_any_title_setting(
    history: History, message: str, title: str, body: str, needs_heads: bool, heads: bool
) -> None:
    history.branch(1, {"a.py": b"1\n"}, {"b.py": b"2\n"})
    history.merge(1, message)
    if not heads:
        history.git("update-ref", "-d", "refs/pull/1/head")
    source = GitSource(history.path)
    changes = list(source.changes())
    if needs_heads and not heads:  # nothing tells that it was one: its commits are plain ones
        assert {change.kind for change in changes} == {"commit"}
        return
    [change] = changes
    assert (change.kind, change.number, change.title, change.body) == ("merge", 1, title, body)
    assert len(change.own_commits) == 2 and source.heads == ({"records": 1} if heads else {})


def test_a_number_of_an_issue_is_not_taken_for_a_pull_request(history: History) -> None:
    history.branch(1, {"a.py": b"1\n"})
    history.merge(1, "Merge branch 'pr1' (#7)")
    history.commit("Fix (#8)", {"a.py": b"3\n"})
    source = GitSource(history.path)
    assert [change.number for change in source.changes()] == [1]
    assert source.skipped == {"number_is_no_pull_request": 1}


def land_in_every_way(history: History) -> None:
    """1 merged, 2 squashed, 3 rebased, 4 rebased with other words, 5 open, 6 a fork's merge inside, 7 on the main line,
    8 the head of another, 9 landed as another, 10 squashed by hand, 11 with another branch inside."""
    history.branch(1, {"a.py": b"1\n"})
    history.merge(1, "Merge pull request #1 from ann/pr1\n\nOne")
    history.branch(2, {"b.py": b"1\n"}, {"b.py": b"2\n"})
    history.squash(2, "Two (#2)\n\n* step 0 of 2\n\n* step 1 of 2")
    history.branch(3, {"c.py": b"1\n"}, {"c.py": b"2\n"})
    history.branch(4, {"d.py": b"1\n"})
    history.commit("moves on", {"e.py": b"1\n"})
    history.git("cherry-pick", "pr3~1", "pr3")
    history.git("cherry-pick", "pr4")
    history.git("commit", "-q", "--amend", "-m", "Other words")
    history.branch(5, {"f.py": b"1\n"})
    history.branch(6, {"g.py": b"1\n"})
    history.branch(11, {"k.py": b"1\n"})
    history.git("checkout", "-q", "pr11")
    history.git("merge", "-q", "--no-ff", "-m", "Merge branch 'pr6'", "pr6")
    history.git("update-ref", "refs/pull/11/head", "HEAD")
    history.git("checkout", "-q", "main")
    history.merge(11, "Merge pull request #11 from ann/pr11\n\nEleven")
    history.git("update-ref", "refs/pull/7/head", "HEAD~1")
    history.git("update-ref", "refs/pull/8/head", "refs/pull/1/head")
    history.branch(9, {"h.py": b"1\n"})
    history.commit("moves again", {"i.py": b"1\n"})
    history.git("cherry-pick", "pr9")
    history.git("commit", "-q", "--amend", "-m", "step 0 of 9 (#10)")
    history.git("update-ref", "refs/pull/10/head", "HEAD")


def test_every_pull_head_is_counted_with_its_end(history: History, tmp_path: Path) -> None:
    land_in_every_way(history)
    command = [sys.executable, "-m", "megatron_davinci", "data", "collect", "git", str(history.path)]
    printed = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=True)
    assert "seen 11, records 5, rejected 5, not_landed 1" in printed.stdout
    kinds = {c.number: c.kind for c in read_changes(tmp_path / "out" / "records" / "00000.jsonl.zst")}
    assert kinds == {1: "merge", 2: "squash", 3: "rebase", 4: "rebase", 10: "squash"}
    rejected = {row["id"]: row["reason"] for row in read_jsonl(tmp_path / "out" / "rejected" / "00000.jsonl.zst")}
    assert rejected == {
        "history#5": "not_landed_as_far_as_the_history_shows",
        "history#6": "landed_inside_another_branch",
        "history#7": "head_is_on_the_main_line",
        "history#8": "head_of_another_pull_request",
        "history#9": "landed_as_another_pull_request",
        "history#11": "merge_inside",
    }
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["pull_heads"] == {"seen": 11, "records": 5, "rejected": 5, "not_landed": 1}


def test_rebased_pull_requests_are_an_option_and_their_patches_are_what_landed(
    history: History, tmp_path: Path
) -> None:
    land_in_every_way(history)
    rebased = [change for change in GitSource(history.path).changes() if change.kind == "rebase"]
    assert [(change.number, change.title) for change in rebased] == [(3, "step 0 of 3"), (4, "step 0 of 4")]
    for change in rebased:
        assert [commit.message for commit in change.commits] == [
            f"step {step} of {change.number}" for step in range(len(change.commits))
        ]
        made = [sample.source for sample in samples_of(change, SAMPLE_FORMATS.get("python"))]
        assert made == ["git:rebase"]
    summary = collect_git(history.path, tmp_path / "out", rebased=False)
    assert summary["kinds"] == {"merge": 1, "squash": 2} and summary["skipped"]["rebased"] == 2


def test_a_patch_that_is_not_the_same_is_not_taken_for_a_rebase(history: History) -> None:
    history.branch(3, {"c.py": b"1\n"})
    history.commit("moves on", {"e.py": b"1\n"})
    history.git("cherry-pick", "pr3")
    (history.path / "c.py").write_bytes(b"other\n")
    history.git("commit", "-q", "-a", "--amend", "--no-edit")  # the same words, author and time
    history.branch(1, {"a.py": b"1\n"})
    history.merge(1, "Merge pull request #1 from ann/pr1\n\nOne")
    source = GitSource(history.path)
    assert [change.number for change in source.changes()] == [1] and source.heads == {"records": 1, "not_landed": 1}


@pytest.mark.parametrize("bundle", ["pluggy", "fd"])
def test_of_a_real_history_every_head_is_told_and_counted_independently(
    shared_data: Path, tmp_path: Path, bundle: str
) -> None:
    clone = tmp_path / "clone.git"
    subprocess.run(["git", "clone", "-q", "--mirror", shared_data / "git" / f"{bundle}.bundle", clone], check=True)
    summary = collect_git(clone, tmp_path / "out")

    def git(*arguments: str) -> list[str]:
        return subprocess.run(["git", "-C", clone, *arguments], capture_output=True, text=True).stdout.split("\n")[:-1]

    refs = [line.split(" ") for line in git("for-each-ref", "--format=%(refname) %(objectname)", "refs/pull/*/head")]
    heads = {int(ref.split("/")[2]): sha for ref, sha in refs}
    told = {int(row["id"].rpartition("#")[2]) for row in read_jsonl(tmp_path / "out" / "rejected" / "00000.jsonl.zst")
            if "#" in row["id"]}  # fmt: skip
    shards = sorted((tmp_path / "out" / "records").iterdir())
    changes = [change for shard in shards for change in read_changes(shard)]
    told |= {change.number for change in changes if change.number}
    assert heads.keys() <= told and summary["pull_heads"]["seen"] == len(heads)
    assert sum(summary["pull_heads"][how] for how in ("records", "rejected", "not_landed")) == len(heads)
    # git's own word for a rebase: cherry marks with - what upstream has by patch.
    for change in [change for change in changes if change.kind == "rebase"][::9]:
        assert {line[0] for line in git("cherry", "HEAD", heads[change.number or 0])} == {"-"}
    assert sum(change.kind == "rebase" for change in changes) >= 30


def test_a_number_that_no_host_gives_costs_its_change_alone(history: History, tmp_path: Path) -> None:
    history.commit("Good (#5)", {"a.py": b"4\n"})
    history.commit("Change (#99999999999999999999)", {"a.py": b"5\n"})
    history.commit("Digits (#" + "9" * 5000 + ")", {"a.py": b"6\n"})
    summary = collect_git(history.path, tmp_path / "out")
    assert summary["records"] == 1 and summary["skipped"] == {"number_too_large": 2}


def test_a_history_of_swe_bench_is_known_whatever_it_is_called(
    history: History, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from data_prep.changes import swe_bench

    history.branch(1, {"a.py": b"1\n"})
    history.merge(1, "Merge pull request #1 from ann/pr1\n\nOne")
    assert [reject_general(change) for change in GitSource(history.path).changes()] == [None]
    base = history.git("rev-parse", "pr1")  # an inner commit, no record's base
    monkeypatch.setattr(swe_bench, "swe_bench_verified", lambda: (frozenset({"requests"}), frozenset({base})))
    collect_git(history.path, tmp_path / "out")
    [change] = read_changes(tmp_path / "out" / "records" / "00000.jsonl.zst")
    assert change.of_swe_bench and change.base != base and reject_general(change) == "swe_bench_verified"


def test_a_name_may_be_given(history: History, tmp_path: Path) -> None:
    history.commit("Fix (#5)", {"a.py": b"4\n"})
    assert collect_git(history.path, tmp_path / "out", name="ann/tool")["repository"] == "ann/tool"
    [change] = read_changes(tmp_path / "out" / "records" / "00000.jsonl.zst")
    assert change.id == "ann/tool#5"
    with pytest.raises(InputError, match="--name is tool; give OWNER/NAME"):
        collect_git(history.path, tmp_path / "other", name="tool")


def test_samples_say_licence_and_dates(history: History) -> None:
    history.branch(1, {"a.py": b"1\n"})
    history.merge(1, "Merge pull request #1 from ann/pr1\n\nOne")
    [change] = GitSource(history.path).changes()
    [sample] = samples_of(change, SAMPLE_FORMATS.get("python"))
    assert sample.meta["licenses"] == ["MIT"] and sample.meta["opened_at"] is None
    for when in ("written_at", "landed_at"):
        assert str(sample.meta[when]).endswith("+00:00") and str(sample.meta[when]) >= "2026"
    talked = change_of("a/b", conversation=TALK)
    [sample] = samples_of(talked, SAMPLE_FORMATS.get("python"))
    assert (sample.meta["opened_at"], sample.meta["landed_at"]) == (TALK.created_at, TALK.merged_at)


@pytest.mark.parametrize(
    "authors, reason",
    [(["Ann", "pre-commit-ci[bot]"], None), (["dependabot[bot]", "Ann"], "bot"), (["renovate"], "bot")],
)
def test_a_bot_s_pull_request_is_left_out_and_a_bot_s_commit_says_nothing(
    authors: list[str], reason: str | None
) -> None:
    file = FileChange("M", "a.py", "a.py", "100644", "100644", "old", "new")
    back = FileChange("M", "a.py", "a.py", "100644", "100644", "new", "third")
    commits = tuple(
        Commit(str(n) * 40, f"words of {who}", who, "2024-01-01T00:00:00+00:00", (file if n == 0 else back,))
        for n, who in enumerate(authors)
    )
    change = Change(
        "a/b", "merge", 1, "T", "", "b" * 40, "1" * 40, commits, {"old": b"1\n", "new": b"2\n", "third": b"3\n"},
        structure="a.py\n",
    )  # fmt: skip
    assert reject_python(change) == reason
    if reason is None:
        for form in SAMPLE_FORMATS.names():
            text = "".join(sample.text for sample in samples_of(change, SAMPLE_FORMATS.get(form)))
            assert "words of pre-commit-ci" not in text and ("words of Ann" in text) == (form != "factorised")


@pytest.mark.parametrize(
    "path, kept",
    [
        ("CHANGES", True), ("README", True), ("LICENSE", True), ("sub/AUTHORS", True), ("docs/a.rst", True),
        ("notes.txt", True), ("requirements.txt", False), ("requirements-dev.txt", False),
        ("requirements/dev.txt", False),
        ("dev-requirements.txt", False), ("constraints.txt", False), ("CMakeLists.txt", False), ("Makefile", False),
        ("a.pyi", True), ("setup.cfg", False), ("Dockerfile", False),
    ],
)  # fmt: skip
def test_what_counts_as_documentation(path: str, kept: bool) -> None:
    assert is_python_or_documentation(path) == kept


def test_python_files_are_counted_in_the_net_difference(history: History) -> None:
    six = {f"new{n}.py": b"x = 1\n" for n in range(6)}
    history.branch(1, six, {"new5.py": None})
    history.merge(1, "Merge pull request #1 from ann/pr1\n\nNet five")
    history.branch(2, {f"more{n}.py": b"x = 1\n" for n in range(6)})
    history.merge(2, "Merge pull request #2 from ann/pr2\n\nSix")
    history.branch(3, {"a.py": b"tmp\n"}, {"a.py": b"one\ntwo\nthree\n"})
    history.merge(3, "Merge pull request #3 from ann/pr3\n\nNothing")
    history.branch(4, {"LICENSE": None, "moved.md": MIT})
    history.merge(4, "Merge pull request #4 from ann/pr4\n\nA rename without Python")
    reasons = {change.number: reject_python(change) for change in GitSource(history.path).changes()}
    assert reasons == {1: None, 2: "too_many_python_files", 3: "no_net_change", 4: "no_python_file"}


def test_a_swap_of_two_files_is_a_net_change(history: History) -> None:
    history.commit("two", {"x.py": b"x = 1\n" * 9, "y.py": b"y = 2\n" * 9})
    history.branch(1, {"x.py": b"y = 2\n" * 9, "y.py": b"x = 1\n" * 9})
    history.merge(1, "Merge pull request #1 from ann/pr1\n\nSwap")
    [change] = GitSource(history.path).changes()
    assert change.net_paths == {"x.py", "y.py"}


@pytest.mark.parametrize("form", ["python", "general"])
def test_a_squash_says_nothing_twice(history: History, form: str) -> None:
    history.branch(1, {"b.py": b"1\n"}, {"b.py": b"2\n"})
    history.squash(1, "One (#1)\n\n* step 0 of 1\n\nwith more words\n\n* step 1 of 1\n\n* only here")
    history.branch(2, {"c.py": b"1\n"})
    history.git("update-ref", "-d", "refs/pull/2/head")
    history.squash(2, "Two (#2)\n\nThe whole story of it.")
    history.git("update-ref", "refs/pull/2/head", "main~2")  # of which nothing is known
    texts = {c.number: samples_of(c, SAMPLE_FORMATS.get(form))[0].text for c in GitSource(history.path).changes()}
    told = {words: texts[1].count(words) for words in ("step 0 of 1", "step 1 of 1", "only here")}
    assert told == {"step 0 of 1": 2, "step 1 of 1": 1, "only here": 1}
    assert texts[2].count("The whole story of it.") == 1


def test_the_factorised_localization_shows_the_structure_at_the_base(history: History) -> None:
    history.branch(1, {"a.py": b"1\n", "pkg/deep/new.py": b"2\n"})
    history.merge(1, "Merge pull request #1 from ann/pr1\n\nOne")
    [change] = GitSource(history.path).changes()
    localization, editing = samples_of(change, SAMPLE_FORMATS.get("factorised"))
    assert "# Repository Structure\n\n```\nLICENSE\na.py\ndocs/\n  index.md\n```\n" in localization.text
    assert "pkg/deep/new.py` (new)" in localization.text and "Repository Structure" not in editing.text
    without: Any = change_of("a/b", structure=None)
    with pytest.raises(Exception, match="no_structure"):
        samples_of(without, SAMPLE_FORMATS.get("factorised"))


def test_a_large_structure_is_cut_by_depth_alone() -> None:
    inner = Folder([f"{n}.py" for n in range(50)], {})
    root = Folder(["setup.py"], {"pkg": Folder(["a.py"], {"sub": inner}), "docs": inner})
    assert structure_of(root, 1000).count("\n") == 1 + 2 + 50 + 50 + 1 + 1
    assert structure_of(root, 60) == "docs/\n" + "".join(
        f"  {n}\n" for n in sorted(f"{n}.py" for n in range(50))
    ) + "pkg/\n  a.py\n  sub/ (50 files)\nsetup.py\n"  # fmt: skip
    assert structure_of(root, 5) == "docs/ (50 files)\npkg/ (51 files)\nsetup.py\n"


def test_thousands_of_names_are_replaced_each_as_a_whole() -> None:
    people = [f"Ann {number}" for number in range(20_000)] + ["Ann 7 Lee", "Bo\tX Y"]
    names = FullNames(people)
    text = "\n".join(f"by {person}, and then" for person in people) + "\nAnn 7x Ann 77777 xAnn 7 a@Ann 7 Ann 7."
    seen: Counter[str] = Counter()

    def name(person: str) -> str:
        seen[person] += 1
        return "someone"

    clean = names.replaced(text, name)
    assert seen["Ann 7 Lee"] == 1 and seen["Ann 12"] == 1 and seen["Ann 7"] == 2 and seen["Bo\tX Y"] == 1
    assert clean.endswith("\nAnn 7x Ann 77777 xAnn 7 a@Ann 7 someone.")


def test_two_pull_requests_do_not_share_one_landing(history: History) -> None:
    history.branch(1, {"c.py": b"1\n"})
    history.git("update-ref", "refs/pull/2/head", "refs/pull/1/head")
    history.commit("moves on", {"e.py": b"1\n"})
    history.git("cherry-pick", "pr1")
    source = GitSource(history.path)
    assert [change.number for change in source.changes()] == [1]
    assert source.skipped == {"landed_as_another_pull_request": 1} and source.heads == {"records": 1, "rejected": 1}


def test_a_missing_object_costs_its_change_alone(history: History) -> None:
    for number in (1, 2, 3):
        history.branch(number, {f"n{number}.py": b"%d\n" % number})
    history.commit("moves on", {"e.py": b"1\n"})
    for number in (1, 2, 3):
        history.git("cherry-pick", f"pr{number}")
    blob = history.git("rev-parse", "main:n2.py")
    (history.path / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    source = GitSource(history.path)
    assert [change.number for change in source.changes()] == [1, 3]
    assert source.skipped == {"contents_missing": 1}


def test_what_a_squash_says_is_not_lost_between_two_places() -> None:
    from data_prep.samples.told_once import body_of, words_of

    change = change_of("a/b", body="* Say it\n\nDetails of it\n\n* lat", title="T")
    commit = Commit("c" * 40, "Say it\n\nDetails of it\nthe latest", "Jane", "", change.commits[0].files)
    told = Change(**{**vars(change), "commits": (commit,)})
    assert body_of(told) == "* lat" and words_of(commit, told) == commit.message
