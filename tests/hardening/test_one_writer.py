"""Every output has one writer, is flushed with its directory, and a fault of the machine loses nothing."""

import ast
import errno
import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import machine_faults
import pytest

from data_prep import InputError
from data_prep.io.files import new_directory, new_file, publish, read_json, write_json

ROOT = Path(__file__).parents[2]
RENAMES_ITSELF = {"data_prep/io/files.py"}


def hold(path: Path, started: "multiprocessing.synchronize.Event", end: "multiprocessing.synchronize.Event") -> None:
    with new_directory(path) as part:
        (part / "file").write_text("the first one's")
        started.set()
        end.wait()


@pytest.mark.parametrize("make", [new_directory, new_file])
def test_the_second_of_two_writers_is_told_and_the_first_one_keeps_its_files(
    tmp_path: Path, make: Callable[[Path], AbstractContextManager[Path]]
) -> None:
    context = multiprocessing.get_context("spawn")
    started, end = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path / "out", started, end))
    process.start()
    try:
        assert started.wait(60)
        with pytest.raises(InputError, match="another process is writing"), make(tmp_path / "out"):
            pass
    finally:
        end.set()
        process.join()
    assert (tmp_path / "out" / "file").read_text() == "the first one's"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@contextmanager
def recorded_flushes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    flushed: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        flushed.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    yield flushed


def test_files_and_their_directory_are_flushed_before_the_name_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recorded_flushes(monkeypatch) as flushed:
        write_json(tmp_path / "a.json", {"a": 1})
        assert flushed == [str(tmp_path / "a.json.part"), str(tmp_path)] and read_json(tmp_path / "a.json") == {"a": 1}
        flushed.clear()
        (tmp_path / "d.part" / "inside").mkdir(parents=True)
        (tmp_path / "d.part" / "inside" / "file").touch()
        publish(tmp_path / "d.part", tmp_path / "d")
        assert {"file", "inside", "d.part"} <= {Path(path).name for path in flushed} and flushed[-1] == str(tmp_path)


def test_nothing_else_renames() -> None:
    """So that each output is flushed: `Path.replace(target)` and its like stand in one place."""
    found = []
    for area in ("data_prep", "megatron_davinci", "tools"):
        for path in sorted((ROOT / area).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                    continue
                one = len(node.args) == 1 and not node.keywords
                if (node.func.attr == "replace" and one) or node.func.attr == "rename":
                    found.append(str(path.relative_to(ROOT)))
    assert set(found) <= RENAMES_ITSELF | {"data_prep/sources/github/clone.py"}  # whose clones are made again


def test_after_a_fault_of_the_machine_the_same_command_ends_with_the_same_bytes() -> None:
    """A few of the table that `make acceptance` makes."""
    jobs = [job for job in machine_faults.JOBS if job.name in ("tokenize", "collect git")]
    faults = [("rename", 1, -1), ("fsync", 0, errno.EIO)]
    rows = machine_faults.table(jobs, faults)
    assert len(rows) == 4 and not [row for row in rows if row[2].startswith("lost")], rows
    assert any("one sentence" in told for *_, told in rows)
