"""Properties of mining: what is emitted replays to what git holds, on real histories and on awkward ones."""

import subprocess
from pathlib import Path

import orjson
import pytest

from data_prep import InputError
from data_prep.changes.record import Change
from data_prep.io.files import read_jsonl
from data_prep.io.shards import run_in_process
from data_prep.reconstruct.contents import Rejected, opaque_paths
from data_prep.reconstruct.edits import FileTree, TextFile, quote
from data_prep.reconstruct.reconstruct import reconstruct
from data_prep.reconstruct.replay_check import verify_replay
from data_prep.samples.anonymize import Anonymizer
from data_prep.samples.build import BuildJob
from data_prep.samples.filters import reject_python
from data_prep.samples.general_format import read_general, render_general
from data_prep.samples.python_format import read_python, render_python
from data_prep.sources.collect import collect_git
from data_prep.sources.git import GitSource
from data_prep.sources.git_command import GitClone
from megatron_davinci.demo.generated_history import NUM_COMMITS, write_generated_history


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


def python_form(change: Change) -> str:
    return render_python(change, reconstruct(change), Anonymizer(change))


def test_pluggy_gives_its_pull_requests(pluggy_clone: Path, tmp_path: Path) -> None:
    summary = collect_git(pluggy_clone, tmp_path / "records")
    assert summary["records"] >= 380 and summary["kinds"]["merge"] >= 240 and summary["kinds"]["squash"] >= 130
    built = run_in_process(BuildJob(tmp_path / "records", "python"), tmp_path / "samples")
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
            text = python_form(change)
        except Rejected:
            continue
        for path, content in read_python(text).files.items():  # the base is git's, not the record's word for it
            assert content.encode() == _show(pluggy_clone, change.base, path)
        tree = replay(text)
        for path, file in tree.items():
            assert file.text.encode() == _show(pluggy_clone, change.head, path), (change.id, path)
        proven += 1
        if proven == 60:  # a sixth of the history, oldest first; the product's own proof runs on all
            break
    assert proven == 60


def replay(text: str) -> FileTree:
    """The working tree after the edits of a finished sample, from nothing but its text."""
    read = read_python(text)
    tree = {path: TextFile(content, "100644") for path, content in read.files.items()}
    for step in read.steps:
        step.apply(tree)
    return tree


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
    held = {path: file.text.encode() for path, file in replay(python_form(change)).items()}
    assert held == {path: content for path, content in files.items() if content is not None}


def proven_in_both_forms(change: Change) -> str:
    anonymizer = Anonymizer(change)
    verify_replay(change, read_python(render_python(change, reconstruct(change), anonymizer)))
    general = render_general(change, reconstruct(change, name_opaque=True), anonymizer)
    verify_replay(change, read_general(general), frozenset(opaque_paths(change)))
    return general


def test_links_and_submodules_have_a_form(repository: Repository) -> None:
    (repository.path / "link").symlink_to("a.py")
    repository.commit("a link", {})
    (repository.path / "link").unlink()
    (repository.path / "link").symlink_to("b.py")
    repository.commit("another target", {})
    for number in "12":
        repository.git("update-index", "--add", "--cacheinfo", f"160000,{number * 40},vendored")
        repository.git("commit", "-q", "-m", f"vendored {number}")
    (repository.path / "link").unlink()
    repository.commit("a file where a link was", {"link": b"text\n"})
    texts = [proven_in_both_forms(change) for change in repository.changes()]
    assert "new file mode 120000\n<pr_diff_hunk>\n@@ -0,0 +1 @@\n+a.py\n\\ No newline at end of file\n" in texts[0]
    assert "-a.py\n\\ No newline at end of file\n+b.py\n" in texts[1]
    assert f"-Subproject commit {'1' * 40}\n+Subproject commit {'2' * 40}\n" in texts[3]
    assert "<pr_file>link\ndeleted file mode 120000\n" in texts[4]  # as git has it: one goes, one comes
    assert "<pr_file>link\nnew file mode 100644\n" in texts[4]


def test_a_mode_change_has_a_form(repository: Repository) -> None:
    (repository.path / "a.py").chmod(0o755)
    repository.commit("executable", {})
    [change] = repository.changes()
    assert "### Mode `a.py` 100755\n" in python_form(change)


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


def merge_main_into_a_topic(repository: Repository, ours: bytes, theirs: bytes, merged: bytes) -> None:
    """A pull request that changes a.py, takes the target branch in, whose a.py has changed too, and goes on."""
    repository.git("checkout", "-q", "-b", "topic")
    repository.commit("first", {"a.py": ours})
    repository.git("checkout", "-q", "main")
    repository.commit("meanwhile", {"a.py": theirs, "b.py": b"y = 2\n", "other.py": b"\n"})
    repository.git("checkout", "-q", "topic")
    subprocess.run(
        ["git", "-C", repository.path, "merge", "-q", "--no-commit", "main"], check=False, capture_output=True
    )
    repository.commit("Merge branch main", {"a.py": merged})
    repository.commit("second", {"a.py": merged + b"end\n"})
    repository.git("checkout", "-q", "main")
    repository.git("merge", "-q", "--no-ff", "-m", "Merge pull request #1 from a/topic", "topic")


def test_a_merge_of_the_target_branch_is_read_again_not_edited(repository: Repository) -> None:
    merge_main_into_a_topic(repository, b"1\ntwo\nthree\n", b"one\ntwo\n3\n", b"1\ntwo\n3\n")
    [change] = repository.changes()
    assert [(commit.merge, commit.conflict) for commit in change.commits] == [
        (False, False),
        (True, False),
        (False, False),
    ]
    assert [file.path for file in change.commits[1].files] == ["a.py"]  # b.py is none of the change's own files
    text = python_form(change)
    assert "### Read `a.py` (mode 100644)\n```\n1\ntwo\n3\n```\n" in text and "b.py" not in text
    verify_replay(change, read_python(text))
    assert replay(text)["a.py"].text == "1\ntwo\n3\nend\n"
    with pytest.raises(Rejected, match="does_not_replay"):  # what the merge left is proven too
        verify_replay(change, read_python(text.replace("1\ntwo\n3\n```", "1\n2\n3\n```")))
    general = render_general(change, reconstruct(change), Anonymizer(change))
    verify_replay(change, read_general(general))
    assert general.count("<pr_base>") == 2


def test_a_conflict_that_a_person_settled_is_rejected(repository: Repository) -> None:
    merge_main_into_a_topic(repository, b"1\ntwo\nthree\n", b"2\ntwo\nthree\n", b"3\ntwo\nthree\n")
    [change] = repository.changes()
    assert change.commits[1].conflict
    with pytest.raises(Rejected, match="merge_conflict"):
        reconstruct(change)


def test_a_merge_of_another_branch_is_counted_not_lost(repository: Repository) -> None:
    repository.git("checkout", "-q", "-b", "topic")
    repository.commit("first", {"a.py": b"1\n"})
    repository.git("checkout", "-q", "-b", "side")
    repository.commit("side", {"other.py": b"\n"})
    repository.git("checkout", "-q", "topic")
    repository.commit("second", {"a.py": b"2\n"})
    repository.git("merge", "-q", "-m", "Merge branch side", "side")
    repository.git("checkout", "-q", "main")
    repository.git("merge", "-q", "--no-ff", "-m", "Merge pull request #1 from a/topic", "topic")
    source = GitSource(repository.path)
    assert list(source.changes()) == []
    assert source.skipped["merge_inside"] == 1


def test_records_survive_the_disk(repository: Repository) -> None:
    repository.commit("change", {"a.py": b"caf\xe9\n", "b.py": b"text\n"})
    [change] = repository.changes()
    assert Change.from_json(orjson.loads(orjson.dumps(change.to_json()))) == change


def test_a_repository_without_commits_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    Repository(tmp_path / "empty")
    with pytest.raises(InputError, match="has no commits"):
        collect_git(tmp_path / "empty", tmp_path / "records")
    with pytest.raises(InputError, match="not a git repository"):
        (tmp_path / "plain").mkdir()
        collect_git(tmp_path / "plain", tmp_path / "records")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "plain"]


def test_what_people_say_is_never_taken_for_an_edit(repository: Repository) -> None:
    traps = "### Delete `a.py`\n# Edits\n# Summary\n# Relevant Files Found\n## `x.py`\n\n```\nforged\n```\n> quoted\n"
    repository.git("checkout", "-q", "-b", "topic")
    repository.commit(f"subject\n\n{traps}", {"a.py": b"1\n"})
    repository.git("checkout", "-q", "main")
    repository.git("merge", "-q", "--no-ff", "-m", f"Merge pull request #7 from a/topic\n\n# Edits\n\n{traps}", "topic")
    [change] = repository.changes()
    text = python_form(change)
    assert quote(traps) in text
    verify_replay(change, read_python(text))
    assert replay(text) == {"a.py": TextFile("1\n", "100644")}


def test_a_text_that_does_not_replay_is_rejected(repository: Repository) -> None:
    repository.commit("change", {"a.py": b"one\n2\nthree\n"})
    [change] = repository.changes()
    text = python_form(change)
    verify_replay(change, read_python(text))
    for forged in (text.replace("\n2\n", "\n3\n"), text.replace("\ntwo\n", "\n2\n", 1)):
        assert forged != text
        with pytest.raises(Rejected, match="does_not_replay"):
            verify_replay(change, read_python(forged))


def test_control_bytes_in_messages_and_paths_lose_no_other_commit(repository: Repository) -> None:
    repository.commit("\x01hello", {"a.py": b"1\n"})
    repository.commit("odd path", {"\x01x.py": b"1\n"})
    repository.commit("latin", {"caf\udce9.py": b"1\n"})
    repository.commit("plain", {"b.py": b"1\n"})
    assert [change.title for change in repository.changes()] == ["\x01hello", "odd path", "latin", "plain"]
    assert [reject_python(change) for change in repository.changes()] == [
        None, "path_cannot_be_written", "path_cannot_be_written", None,
    ]  # fmt: skip


def test_a_number_that_comes_twice_is_the_main_lines(repository: Repository) -> None:
    def merge(number: int, branch: str, title: str) -> None:
        repository.git(
            "merge", "-q", "--no-ff", "-m", f"Merge pull request #{number} from a/{branch}\n\n{title}", branch
        )

    repository.git("checkout", "-q", "-b", "fork")
    repository.git("checkout", "-q", "-b", "theirs")
    repository.commit("theirs", {"x.py": b"1\n"})
    repository.git("checkout", "-q", "fork")
    merge(1, "theirs", "the fork's own")
    repository.git("checkout", "-q", "main")
    repository.git("checkout", "-q", "-b", "ours")
    repository.commit("ours", {"y.py": b"1\n"})
    repository.git("checkout", "-q", "main")
    merge(1, "ours", "ours")
    repository.git("merge", "-q", "--no-ff", "-m", "Merge branch fork", "fork")
    source = GitSource(repository.path)
    assert [change.title for change in source.changes()] == ["ours"]
    assert source.skipped["number_seen_before"] == 1


@pytest.mark.parametrize(
    "remote, name",
    [
        ("https://github.com/pytest-dev/pluggy.git", "pytest-dev/pluggy"),
        ("git@github.com:pytest-dev/pluggy.git", "pytest-dev/pluggy"),
        ("github-work:pytest-dev/pluggy", "pytest-dev/pluggy"),
        ("ssh://git@host:22/group/sub/name.git/", "sub/name"),
        ("/somewhere/pluggy.bundle", "repository"),
        ("file:///somewhere/pluggy.bundle", "repository"),
    ],
)
def test_the_repositorys_name_is_its_remotes(repository: Repository, remote: str, name: str) -> None:
    repository.git("remote", "add", "origin", remote)
    assert GitSource(repository.path).repository == name


@pytest.mark.parametrize("remote", ["https://github.com/django/django", "git@github.com:someone/django.git", ""])
def test_repositories_of_swe_bench_verified_are_left_out(tmp_path: Path, remote: str) -> None:
    made = Repository(tmp_path / "django")
    made.commit("start", {"a.py": b"1\n"})
    made.commit("change", {"a.py": b"2\n"})
    if remote:
        made.git("remote", "add", "origin", remote)
    assert [reject_python(change) for change in made.changes()] == ["swe_bench_verified"]


def test_variables_for_git_do_not_lead_to_another_repository(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.commit("change", {"a.py": b"1\n"})
    head = repository.git("rev-parse", "HEAD")
    other = Repository(tmp_path / "other")
    other.commit("start", {"b.py": b"1\n"})
    monkeypatch.setenv("GIT_DIR", str(repository.path / ".git"))
    assert list(GitSource(other.path).changes()) == []
    write_generated_history(tmp_path / "generated")
    monkeypatch.delenv("GIT_DIR")
    assert repository.git("rev-parse", "HEAD") == head
    assert len(list(GitSource(tmp_path / "generated").changes())) == NUM_COMMITS


def test_what_is_missing_spoils_no_later_answer(repository: Repository) -> None:
    there = [repository.git("rev-parse", f"HEAD:{name}") for name in ("a.py", "b.py", "crlf.py")]
    clone = GitClone(repository.path)
    right = clone.blobs(there, 1000)
    for _ in range(2):
        with pytest.raises(InputError, match="is missing from"):
            clone.blobs([there[0], "0" * 40, *there[1:]], 1000)
        assert clone.blobs(there, 1000) == right
    clone.close()


def test_a_folder_inside_a_repository_is_not_taken_for_it(repository: Repository) -> None:
    (repository.path / "unzipped").mkdir()
    with pytest.raises(InputError, match="not a git repository"):
        GitSource(repository.path / "unzipped")


def test_a_clones_own_configuration_runs_nothing(repository: Repository, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    script = tmp_path / "script.sh"
    script.write_text(f"#!/bin/sh\ntouch {marker}\n")
    script.chmod(0o755)
    tree = repository.git("rev-parse", "HEAD^{tree}")
    parent = repository.git("rev-parse", "HEAD")
    signed = (
        f"tree {tree}\nparent {parent}\nauthor A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\n"
        "gpgsig -----BEGIN PGP SIGNATURE-----\n \n -----END PGP SIGNATURE-----\n\nsigned\n"
    )
    command = ["git", "-C", str(repository.path), "hash-object", "-t", "commit", "-w", "--stdin"]
    commit = subprocess.run(command, input=signed, text=True, capture_output=True, check=True).stdout.strip()
    repository.git("update-ref", "HEAD", commit)
    for key, value in {
        "log.showSignature": "true", "gpg.program": str(script), "diff.external": str(script),
        "core.fsmonitor": str(script), "core.pager": str(script),
        "protocol.ext.allow": "always", "remote.origin.url": f"ext::sh -c {script}",
        "remote.origin.promisor": "true", "remote.origin.partialclonefilter": "blob:none",
    }.items():  # fmt: skip
        repository.git("config", key, value)
    repository.git("config", "extensions.partialClone", "origin")
    blob = repository.git("rev-parse", "HEAD:a.py")
    [change] = repository.changes()
    assert change.title == "signed" and not marker.exists()
    (repository.path / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(InputError, match=r"is missing from .*deepen it"):
        GitClone(repository.path).blobs([blob], 100)
    assert not marker.exists()
