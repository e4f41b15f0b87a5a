"""Property: a killed run ends as one that was not, on a GPU too; a checkpoint does not mind where it was written."""

import copy
from pathlib import Path
from typing import Any

import pytest
from conftest import write_model
from devices import MODEL
from training import finish, kill_after, kill_when, reported, same_weights, start, write_recipe

pytestmark = pytest.mark.gpu

MEGATRON = {"bf16": True, "use_distributed_optimizer": True}


@pytest.fixture
def values(recipe_values: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """18 documents, 4 to a batch, ten times: 45 steps."""
    values = copy.deepcopy(recipe_values)
    values["model"] = str(write_model(tmp_path / "wide", **MODEL))
    values["data"]["stages"][0]["epochs"] = 10
    values["schedule"]["lr"] = 1e-3
    return values


def test_a_run_killed_while_it_saves_ends_as_an_uninterrupted_one(values: dict[str, Any], tmp_path: Path) -> None:
    finish(start(write_recipe(values, tmp_path, "whole", megatron=MEGATRON), 1))
    recipe = write_recipe(values, tmp_path, "killed", megatron=MEGATRON)
    kill_when(start(recipe, 1, "checkpoint.async_save=true"), (tmp_path / "killed" / "latest").exists)
    assert "resuming" in finish(start(recipe, 1, "checkpoint.async_save=true"))
    assert reported(tmp_path / "killed") == reported(tmp_path / "whole")
    assert same_weights(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("first", ["cpu", "device"])
def test_a_checkpoint_goes_on_where_it_was_not_written(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    recipe = write_recipe(values, tmp_path, "moved", megatron=MEGATRON)
    for number, device in enumerate([first, "device" if first == "cpu" else "cpu"]):
        with monkeypatch.context() as patched:
            if device == "cpu":
                patched.setenv("CUDA_VISIBLE_DEVICES", "")
            process = start(recipe, 1)
            if number == 0:
                kill_after(process, tmp_path / "moved", 5)
            else:
                assert "resuming" in finish(process)
    with monkeypatch.context() as patched:
        patched.setenv("CUDA_VISIBLE_DEVICES", "")
        finish(start(write_recipe(values, tmp_path, "whole", megatron=MEGATRON), 1))
    losses = [[line["loss"] for line in reported(tmp_path / run)] for run in ("moved", "whole")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
