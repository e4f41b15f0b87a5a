"""No setting, side file or link of a clone changes what is read of it."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from data_prep import InputError
from data_prep.sources.git import GitSource

GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]


def git(path: Path, *arguments: str) -> str:
    return subprocess.run(
        [*GIT, "-C", str(path), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Renamed and changed files, a name with an umlaut, and a squash whose branch moved on in the same file."""
    path = tmp_path / "clone"
    subprocess.run(["git", "init", "-q", "-b", "main", str(path)], check=True)
    for number in range(4):
        (path / f"f{number}.py").write_text("".join(f"v{line} = {line}\n" for line in range(40)))
    git(path, "add", ".")
    git(path, "commit", "-qm", "first")
    git(path, "checkout", "-qb", "branch")
    (path / "f0.py").write_text((path / "f0.py").read_text().replace("v3 = 3", "v3 = 77"))
    git(path, "commit", "-qam", "mine")
    git(path, "update-ref", "refs/pull/8/head", "HEAD")
    git(path, "checkout", "-q", "main")
    (path / "f0.py").write_text((path / "f0.py").read_text().replace("v20 = 20", "v20 = 55"))
    git(path, "commit", "-qam", "Mine (#8)")
    for number in range(4):
        git(path, "mv", f"f{number}.py", f"g{number}.py")
    (path / "g1.py").write_text((path / "g1.py").read_text().replace("v5 = 5", "v5 = 6"))
    git(path, "commit", "-qam", "Änderung (#9)")
    git(path, "update-ref", "refs/pull/9/head", "HEAD")
    git(path, "branch", "-qD", "branch")
    return path


def records(path: Path) -> bytes:
    source = GitSource(path, name="a/b")
    held = [change.to_json() for change in source.changes()]
    return orjson.dumps([held, dict(source.skipped)], option=orjson.OPT_SORT_KEYS)


def setting(name: str, value: str) -> Callable[[Path], None]:
    return lambda path: (git(path, "config", name, value) and None) or None


def side_file(name: str, content: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(content)

    return write


def graft(path: Path) -> None:
    newest, oldest = git(path, "rev-parse", "HEAD"), git(path, "rev-list", "--max-parents=0", "HEAD")
    side_file(".git/info/grafts", f"{newest} {oldest}\n")(path)


def replacement(path: Path) -> None:
    git(path, "replace", git(path, "rev-parse", "HEAD:g0.py"), git(path, "rev-parse", "HEAD:g1.py"))


def endless_include(path: Path) -> None:
    os.mkfifo(path / "fifo")
    with (path / ".git" / "config").open("a") as file:
        file.write(f"[include]\n\tpath = {path / 'fifo'}\n")


CHANGES: dict[str, Callable[[Path], None]] = {
    "color.diff": setting("color.diff", "always"),
    "diff.renames": setting("diff.renames", "false"),
    "diff.renameLimit": setting("diff.renameLimit", "1"),
    "diff.context": setting("diff.context", "30"),
    "diff.noprefix": setting("diff.noprefix", "true"),
    "diff.external": setting("diff.external", "/bin/false"),
    "core.quotePath": setting("core.quotePath", "false"),
    "core.attributesFile": setting("core.attributesFile", "/dev/zero"),
    "i18n.logOutputEncoding": setting("i18n.logOutputEncoding", "ISO-8859-1"),
    "log.showSignature": setting("log.showSignature", "true"),
    "mailmap.file": setting("mailmap.file", "/dev/zero"),
    "core.fsmonitor": setting("core.fsmonitor", "/bin/false"),
    "endless include": endless_include,
    "grafts": graft,
    "replacement": replacement,
    "info/attributes": side_file(".git/info/attributes", "*.py -diff\n"),
    "attributes of the work tree": side_file(".gitattributes", "*.py -diff\n"),
    "a file named HEAD": side_file("HEAD", "x\n"),
    "another file in the work tree": side_file("g0.py", "x = 1\n"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_nothing_beside_the_history_changes_the_records(clone: Path, name: str) -> None:
    before = records(clone)
    assert before.count(b'"number"') == 2
    CHANGES[name](clone)
    assert records(clone) == before


def lead(link: str, target: str) -> Callable[[Path, Path], None]:
    def make(clone: Path, other: Path) -> None:
        at = clone / link
        subprocess.run(["rm", "-rf", str(at)], check=True)
        at.symlink_to(other / target)

    return make


def write(name: str, text: str) -> Callable[[Path, Path], None]:
    return lambda clone, other: side_file(name, text.format(other=other))(clone)


def git_file(clone: Path, other: Path) -> None:
    subprocess.run(["rm", "-rf", str(clone / ".git")], check=True)
    (clone / ".git").write_text(f"gitdir: {other}/.git\n")


@pytest.mark.parametrize(
    "plant",
    [
        lead(".git", ".git"),
        lead(".git/objects", ".git/objects"),
        lead(".git/refs", ".git/refs"),
        lead(".git/HEAD", ".git/HEAD"),
        lead(".git/packed-refs", ".git/HEAD"),
        write(".git/objects/info/alternates", "{other}/.git/objects\n"),
        write(".git/commondir", "{other}/.git\n"),
        git_file,
    ],
)
def test_no_link_leads_out_of_a_clone(clone: Path, tmp_path: Path, plant: Callable[[Path, Path], None]) -> None:
    other = tmp_path / "private"
    subprocess.run(["cp", "-r", str(clone), str(other)], check=True)
    plant(clone, other)
    with pytest.raises(InputError, match=r"leads to another|is a link|names another|is a work tree of"):
        GitSource(clone)


def test_a_head_whose_commit_is_missing_costs_itself(clone: Path) -> None:
    (clone / ".git" / "refs" / "pull" / "7").mkdir(parents=True)
    (clone / ".git" / "refs" / "pull" / "7" / "head").write_text("1" * 40 + "\n")
    source = GitSource(clone)
    assert [change.number for change in source.changes()] == [8, 9]
    assert source.skipped["head_is_missing"] == 1 and source.heads.total() == 3


def test_folders_that_are_too_deep_cost_their_change_alone(clone: Path) -> None:
    deep = "M 100644 inline " + "d/" * 600 + "x.py\ndata 6\nx = 1\n\n"
    begin = "commit refs/heads/main\ncommitter A <a@b.c> 19000000{0} +0000\ndata 9\nMore (#{1})\n"
    script = begin.format("00", 5) + "from refs/heads/main^0\n" + deep
    script += begin.format("01", 6) + "M 100644 inline a.py\ndata 6\nx = 1\n\n"
    subprocess.run(["git", "-C", clone, "fast-import", "--quiet"], input=script.encode(), check=True)
    for number in (5, 6):
        git(clone, "update-ref", f"refs/pull/{number}/head", "main" if number == 6 else "main^")
    source = GitSource(clone)
    assert [change.number for change in source.changes()] == [8, 9, 5]
    assert source.skipped["folders_too_deep"] == 1 and source.heads.total() == 4
