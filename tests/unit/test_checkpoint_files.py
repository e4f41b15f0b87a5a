"""Properties of a run's checkpoints: the one that was just saved stays, and damage is found."""

import json
import shutil
from pathlib import Path

import pytest

from data_prep import InputError
from megatron_davinci.train.checkpoint.recovery import newest_whole
from megatron_davinci.weights.checkpoint_files import (
    altered_weights,
    check_checkpoint,
    prune_checkpoints,
    take_inventory,
)
from megatron_davinci.weights.metadata import Metadata, write_metadata


@pytest.mark.parametrize(
    "existing, newest, keep, every, left",
    [
        ([2, 4, 6], 6, 2, None, [4, 6]),
        ([2, 4, 5, 6, 8], 5, 2, None, [4, 5]),  # the run fell back to 4: 6 and 8 lie ahead of it
        ([7], 7, 3, None, [7]),
        ([2, 4, 6, 8, 10], 10, 1, 4, [4, 8, 10]),
        ([2, 4, 6, 8], 6, 2, 4, [4, 6]),
    ],
)
def test_the_newest_checkpoint_is_never_pruned(
    tmp_path: Path, existing: list[int], newest: int, keep: int, every: int | None, left: list[int]
) -> None:
    for step in existing:
        (tmp_path / f"step_{step:07d}").mkdir()
    (tmp_path / "step_0000009.part").mkdir()
    prune_checkpoints(tmp_path / f"step_{newest:07d}", keep, every)
    assert sorted(int(path.name[5:]) for path in tmp_path.glob("step_*")) == left


def write_checkpoint(directory: Path) -> Path:
    """Weights in two files, progress, and a manifest."""
    directory.mkdir()
    write_metadata(Metadata({}), directory / ".metadata")
    (directory / "progress.json").write_text("{}")
    for name in ("__0_0.distcp", "__1_0.distcp"):
        (directory / name).write_bytes(b"weights")
    (directory / "manifest.json").write_text(json.dumps({"files": take_inventory(directory, lambda name: True)}))
    return directory


@pytest.mark.parametrize("name", ["__0_0.distcp", "progress.json", ".metadata", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, name: str, damage: str) -> None:
    directory = write_checkpoint(tmp_path / "step_0000001")
    check_checkpoint(directory)
    path = directory / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        check_checkpoint(directory)


def test_altered_weights_are_found_by_the_rank_whose_share_they_are(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "step_0000001")
    assert altered_weights(directory, 0, 1) == []
    (directory / "__1_0.distcp").write_bytes(b"w3ights")
    check_checkpoint(directory)  # the size is right
    assert [altered_weights(directory, rank, 2) for rank in range(2)] == [[], ["__1_0.distcp"]]
    assert altered_weights(directory, 0, 1) == ["__1_0.distcp"]


def test_the_newest_whole_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert newest_whole(tmp_path) is None
    checkpoints = [write_checkpoint(tmp_path / f"step_{step:07d}") for step in (2, 4, 6, 8)]
    (tmp_path / "latest").write_text("step_0000006\n")  # 8 lies ahead: the run fell back
    assert newest_whole(tmp_path) == checkpoints[2] and not capsys.readouterr().err
    (checkpoints[2] / "progress.json").unlink()
    assert newest_whole(tmp_path) == checkpoints[1]
    said = capsys.readouterr().err
    assert said.endswith("progress.json is missing or altered; going on from step_0000004\n")
    assert newest_whole(tmp_path, "step_0000004") == checkpoints[0]
    shutil.rmtree(checkpoints[2])
    assert newest_whole(tmp_path) == checkpoints[1]
    assert "step_0000006 is missing; going on from step_0000004" in capsys.readouterr().err
    for lost in ("", None):  # a copy of a run may lack the pointer, a torn one be empty: never begin anew over them
        (tmp_path / "latest").unlink() if lost is None else (tmp_path / "latest").write_text(lost)
        assert newest_whole(tmp_path) == checkpoints[3]
        assert "latest is missing; going on from step_0000008" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"has no checkpoint that is whole \(step_0000002\)"):
        newest_whole(tmp_path, "step_0000002")
