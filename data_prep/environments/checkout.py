"""A commit of a clone as a repository of its own, of one commit: nothing that came later is in it, no tag, no remote.

Contents are the repository's bytes: no attribute of it converts, filters or leaves out anything.
"""

import os
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

from data_prep.environments.sandbox.base import SandboxFailed
from data_prep.io.errors import InputError
from data_prep.sources.git_reader import GIT, GitReader, git_reader_environment

_NO_CONVERSION = "* -text !eol !filter -ident !working-tree-encoding !diff !merge\n"
_MAX_READ = 1 << 20


def check_out(reader: GitReader, commit: str, tree: Path, date: str) -> None:
    """Make `tree` (a directory, absent) out of a commit. Raises InputError where the clone has no such commit."""
    found = reader.git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}")
    if found.returncode:
        raise InputError(f"the clone has no commit {commit}: fetch it")
    tree.mkdir(parents=True)
    index = tree.with_name(f"{tree.name}.index")
    without_conversion(reader.directory)
    environment = {**reader.environment, "GIT_INDEX_FILE": str(index.absolute())}
    git = [*GIT, "-C", str(reader.directory), f"--work-tree={tree.absolute()}", f"--git-dir={reader.directory}"]
    try:
        _do([*git, "read-tree", found.stdout.decode().strip()], environment)
        _do([*git, "checkout-index", "-a", "-f", f"--prefix={tree.absolute()}/"], environment)
    finally:
        index.unlink(missing_ok=True)
    make_repository(tree, date)


def unpack(archive: Path, tree: Path, date: str) -> None:
    """Make `tree` out of a tar file of a commit's files. Raises InputError where it holds anything else."""
    tree.mkdir(parents=True)
    try:
        with tarfile.open(archive) as packed:
            packed.extractall(tree, filter="data")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"{archive} cannot be unpacked ({error}): make it with git archive") from None
    entries = list(tree.iterdir())
    if len(entries) == 1 and entries[0].is_dir() and not entries[0].is_symlink():
        inner = tree.with_name(f"{tree.name}.inner")
        shutil.move(entries[0], inner)
        tree.rmdir()
        shutil.move(inner, tree)
    if (tree / ".git").exists():
        raise InputError(f"{archive} holds a .git, and its history may hold the answer: make it with git archive")
    make_repository(tree, date)


def make_repository(tree: Path, date: str) -> None:
    """Make a directory a repository with one commit of all that is in it."""
    made = {
        **git_reader_environment(),
        **{f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in _who(date).items()},
    }
    git = [*GIT, "-C", str(tree.absolute())]
    _do([*git, "init", "-q", "--template=", "-b", "main"], made)
    without_conversion(tree / ".git")
    _do([*git, "-c", "core.autocrlf=false", "add", "-A", "-f"], made)
    _do([*git, "commit", "-q", "--no-verify", "--allow-empty", "-m", "base"], made)


def without_conversion(directory: Path) -> None:
    """Have a repository of ours, by its git directory, take and give the bytes of files as they are."""
    (directory / "info").mkdir(exist_ok=True)
    (directory / "info" / "attributes").write_text(_NO_CONVERSION)


def tracked_files(tree: Path) -> list[str]:
    """Paths of a checkout's own files."""
    command = [*GIT, "-C", str(tree), "ls-files", "-z"]
    listed = subprocess.run(command, env=git_reader_environment(), capture_output=True, check=True)
    return [os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]


def apply_on_host(tree: Path, patch: bytes) -> str:
    """Apply a patch to a checkout of ours; returns what git says against it. It writes outside the tree never."""
    command = [*GIT, "-C", str(tree), "apply", "--index", "--whitespace=nowarn", "-"]
    done = subprocess.run(command, input=patch, env=git_reader_environment(), capture_output=True, check=False)
    return done.stderr.decode(errors="replace")[:300].strip() if done.returncode else ""


def leave_out(tree: Path, paths: Sequence[str]) -> None:
    """Have git not see files that installing made: they are no change of anybody's."""
    lines = "".join("/" + _escaped(path) + "\n" for path in sorted(paths))
    (tree / ".git" / "info" / "exclude").write_text(lines, errors="surrogateescape")


def read_in_tree(tree: Path, name: str) -> str:
    """Text of a file in a stranger's tree, empty where there is none: links are not followed."""
    path = tree
    for part in Path(name).parts:
        path = path / part
        if path.is_symlink():
            return ""
    if not path.is_file() or path.stat().st_size > _MAX_READ:
        return ""
    return path.read_text("utf-8", "replace")


def _escaped(path: str) -> str:
    return "".join(f"\\{each}" if each in "\\*?[]! " else each for each in path)


def _who(date: str) -> dict[str, str]:
    return {"NAME": "base", "EMAIL": "base@localhost", "DATE": date or "2000-01-01T00:00:00+00:00"}


def _do(command: Sequence[str | os.PathLike[str]], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    if done.returncode:
        raise SandboxFailed(f"git cannot make a checkout: {done.stderr.decode(errors='replace')[-300:].strip()}")
