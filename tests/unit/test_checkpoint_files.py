"""Laws of a run's checkpoints: the one that was just saved stays, and damage is found."""

import json
from pathlib import Path

import pytest

from data_prep import InputError
from megatron_davinci.checkpoint.files import check_checkpoint, prune, take_inventory


@pytest.mark.parametrize(
    "existing, newest, keep, left",
    [
        ([2, 4, 6], 6, 2, [4, 6]),
        ([2, 4, 5, 6, 8], 5, 2, [4, 5]),  # the run fell back to 4: 6 and 8 lie ahead of it
        ([7], 7, 3, [7]),
    ],
)
def test_the_newest_checkpoint_is_never_pruned(
    tmp_path: Path, existing: list[int], newest: int, keep: int, left: list[int]
) -> None:
    for step in existing:
        (tmp_path / f"step_{step:07d}").mkdir()
    (tmp_path / "step_0000009.part").mkdir()
    prune(tmp_path / f"step_{newest:07d}", keep)
    assert sorted(int(p.name[5:]) for p in tmp_path.glob("step_*[0-9]")) == left


@pytest.mark.parametrize("damage", ["altered", "truncated", "missing"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    directory = tmp_path / "step_0000001"
    directory.mkdir()
    path = directory / "__0_0.distcp"
    path.write_bytes(b"weights")
    (directory / "manifest.json").write_text(json.dumps({"files": take_inventory(directory)}))
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"w3ights" if damage == "altered" else b"weight")
    with pytest.raises(InputError, match=r"__0_0\.distcp is missing or altered"):
        check_checkpoint(directory)
