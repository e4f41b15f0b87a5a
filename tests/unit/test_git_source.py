"""Laws of mining: what is emitted replays to what git holds, on real histories and on awkward ones."""

import subprocess
from pathlib import Path

import pytest

from data_prep import InputError
from data_prep.files import read_jsonl
from data_prep.pull_request.build import build_samples, collect_git
from data_prep.pull_request.edits import apply_edit, parse_edits
from data_prep.pull_request.reconstruct import Rejected, _files_at_base, reconstruct
from data_prep.pull_request.record import Change
from data_prep.sources.git import GitSource


class Repository:
    """A repository made for one test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        subprocess.run(["git", "init", "-q", "-b", "main", path], check=True)

    def git(self, *arguments: str) -> str:
        identity = ["-c", "user.name=A Person", "-c", "user.email=a@example.com", "-c", "core.autocrlf=false"]
        command = ["git", *identity, "-C", str(self.path), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, message: str, files: dict[str, bytes | None]) -> str:
        for name, content in files.items():
            path = self.path / name
            if content is None:
                path.unlink()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)
        return self.git("rev-parse", "HEAD")

    def changes(self) -> list[Change]:
        return list(GitSource(self.path).changes())


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "repository")
    made.commit("start", {"a.py": b"one\ntwo\nthree\n", "b.py": b"x = 1\n" * 40, "crlf.py": b"a\r\nb\r\nc\r\n"})
    return made


def test_pluggy_gives_its_pull_requests(pluggy_clone: Path, tmp_path: Path) -> None:
    summary = collect_git(pluggy_clone, tmp_path / "records")
    assert summary["records"] >= 380 and summary["kinds"]["merge"] >= 240 and summary["kinds"]["squash"] >= 130
    built = build_samples(tmp_path / "records", tmp_path / "samples")
    assert built["samples"] + sum(built["rejected"].values()) == summary["records"]
    samples = list(read_jsonl(tmp_path / "samples" / "samples" / "00000.jsonl.zst"))
    assert len({sample["id"] for sample in samples}) == len(samples) == built["samples"] >= 90
    assert len(list(read_jsonl(tmp_path / "samples" / "rejected" / "00000.jsonl.zst"))) == sum(
        built["rejected"].values()
    )


def test_every_emitted_edit_of_a_real_history_gives_the_bytes_git_has(pluggy_clone: Path) -> None:
    proven = 0
    for change in GitSource(pluggy_clone).changes():
        try:
            steps = reconstruct(change).steps
        except Rejected:
            continue
        tree = _files_at_base(change)
        for path, file in tree.items():  # the base is git's, not the record's word for it
            assert file.text.encode() == _show(pluggy_clone, change.base, path)
        for step in steps:
            for edit in parse_edits(step.edits):
                apply_edit(tree, edit)
        for path, file in tree.items():
            assert file.text.encode() == _show(pluggy_clone, change.head, path), (change.id, path)
        proven += 1
        if proven == 60:  # a sixth of the history, oldest first; the product's own proof runs on all
            break
    assert proven == 60


def _show(repository: Path, commit: str, path: str) -> bytes:
    command = ["git", "-C", str(repository), "show", f"{commit}:{path}"]
    return subprocess.run(command, check=True, capture_output=True).stdout


@pytest.mark.parametrize(
    "files",
    [
        {"a.py": b"one\n2\nthree\n"},
        {"a.py": b"one\ntwo\nthree"},  # no newline at the end of the file
        {"crlf.py": b"a\r\nB\r\nc\r\n"},
        {"crlf.py": b"a\nb\nc\n"},
        {"a.py": None},
        {"new.py": b""},
        {"new.py": b"====\n<<<<<<< SEARCH\n```\n"},
        {"a.py": b""},
        {"b.py": b"x = 1\n" * 20 + b"y = 2\n" + b"x = 1\n" * 20},  # nothing near is unique
        {"a.py": None, "moved.py": b"one\ntwo\nthree\n"},
        {"a.py": None, "moved.py": b"one\ntwo\nthree\nfour\n"},
        {"a.py": b"x = 1\n" * 40, "b.py": b"one\ntwo\nthree\n"},  # two files change places
    ],
    ids=str,
)
def test_awkward_changes_replay(repository: Repository, files: dict[str, bytes | None]) -> None:
    repository.commit("change", files)
    [change] = repository.changes()
    steps = reconstruct(change).steps
    tree = _files_at_base(change)
    for step in steps:
        for edit in parse_edits(step.edits):
            apply_edit(tree, edit)
    held = {path: file.text.encode() for path, file in tree.items()}
    assert held == {path: content for path, content in files.items() if content is not None}


def test_a_mode_change_has_a_form(repository: Repository) -> None:
    (repository.path / "a.py").chmod(0o755)
    repository.commit("executable", {})
    [change] = repository.changes()
    assert reconstruct(change).steps[0].edits == "### Mode `a.py` 100755\n"


@pytest.mark.parametrize(
    "content, reason",
    [(b"\0\1", "binary_file"), (b"caf\xe9\n", "not_utf8"), (b"x" * (1 << 20) + b"\n", "file_too_large")],
)
def test_what_is_no_text_is_rejected_with_its_reason(repository: Repository, content: bytes, reason: str) -> None:
    repository.commit("change", {"a.py": content})
    [change] = repository.changes()
    with pytest.raises(Rejected, match=reason):
        reconstruct(change)


def test_a_merged_pull_request_has_the_parent_of_its_first_commit_as_base(repository: Repository) -> None:
    base = repository.git("rev-parse", "HEAD")
    repository.git("checkout", "-q", "-b", "topic")
    repository.commit("first", {"a.py": b"1\n"})
    head = repository.commit("second", {"a.py": b"2\n"})
    repository.git("checkout", "-q", "main")
    repository.commit("meanwhile", {"other.py": b"\n"})
    repository.git(
        "merge", "-q", "--no-ff", "-m", "Merge pull request #7 from someone/topic\n\nThe title\n\nA body", "topic"
    )
    [change] = repository.changes()
    assert (change.kind, change.number, change.title, change.body) == ("merge", 7, "The title", "A body")
    assert (change.base, change.head) == (base, head)
    assert [commit.message for commit in change.commits] == ["first", "second"]


def test_a_squash_takes_the_commits_of_its_pull_request_where_they_make_the_same_patch(repository: Repository) -> None:
    repository.git("checkout", "-q", "-b", "topic")
    repository.commit("first", {"a.py": b"1\n"})
    head = repository.commit("second", {"a.py": b"2\n"})
    repository.git("update-ref", "refs/pull/8/head", head)
    repository.git("checkout", "-q", "main")
    repository.commit("A title (#8)", {"a.py": b"2\n"})
    repository.commit("Not a pull request (#9)", {"a.py": b"3\n"})
    [change] = repository.changes()
    assert (change.kind, change.number, change.title) == ("squash", 8, "A title")
    assert [commit.message for commit in change.commits] == ["first", "second"]


def test_a_merge_inside_a_pull_request_is_counted_not_lost(repository: Repository) -> None:
    repository.git("checkout", "-q", "-b", "topic")
    repository.commit("first", {"a.py": b"1\n"})
    repository.git("checkout", "-q", "main")
    repository.commit("meanwhile", {"other.py": b"\n"})
    repository.git("checkout", "-q", "topic")
    repository.git("merge", "-q", "-m", "Merge branch main", "main")
    repository.commit("second", {"a.py": b"2\n"})
    repository.git("checkout", "-q", "main")
    repository.git("merge", "-q", "--no-ff", "-m", "Merge pull request #1 from a/topic", "topic")
    source = GitSource(repository.path)
    assert all(change.kind == "commit" for change in source.changes())
    assert source.skipped["merge_inside"] == 1


def test_records_survive_the_disk(repository: Repository) -> None:
    repository.commit("change", {"a.py": b"caf\xe9\n", "b.py": b"text\n"})
    [change] = repository.changes()
    assert Change.from_json(change.to_json()) == change


def test_a_repository_without_commits_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    Repository(tmp_path / "empty")
    with pytest.raises(InputError, match="has no commits"):
        collect_git(tmp_path / "empty", tmp_path / "records")
    with pytest.raises(InputError, match="not a git repository"):
        (tmp_path / "plain").mkdir()
        collect_git(tmp_path / "plain", tmp_path / "records")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "plain"]
