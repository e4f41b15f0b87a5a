"""Property: a run that was killed and started again ends as one that was not; also in another layout of ranks."""

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import EFFORT, of_acceptance, write_model
from forked import run_davinci
from training import kill_after, progress, reported, same_weights, start, train, write_recipe

DISTRIBUTED = {"use_distributed_optimizer": True}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "alone": (1, {}),
    "TP2+SP": (2, {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
    "PP2 interleaved, bf16": (
        2,
        {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2, "bf16": True},
    ),
    "DP2, distributed optimizer, overlapped": (
        2,
        {**DISTRIBUTED, "overlap_grad_reduce": True, "overlap_param_gather": True},
    ),
    "CP2, distributed optimizer, bf16": (2, {**DISTRIBUTED, "context_parallel_size": 2, "bf16": True}),
}


@pytest.fixture
def three_epochs(recipe_values: dict[str, Any]) -> dict[str, Any]:
    """18 documents, 4 to a batch, three times: 14 steps."""
    values = copy.deepcopy(recipe_values)
    values["data"]["stages"][0]["epochs"] = 3
    values["schedule"]["lr"] = 1e-3  # Adam makes much of rounding, the more the higher the rate
    return values


@pytest.mark.parametrize("layout", LAYOUTS if EFFORT > 1 else ["DP2, distributed optimizer, overlapped"])
def test_a_killed_run_ends_as_an_uninterrupted_one(three_epochs: dict[str, Any], tmp_path: Path, layout: str) -> None:
    ranks, megatron = LAYOUTS[layout]
    train(write_recipe(three_epochs, tmp_path, "whole", megatron=megatron), ranks)
    recipe = write_recipe(three_epochs, tmp_path, "killed", megatron=megatron)
    kills = max(1, (20 * EFFORT) // (10 * len(LAYOUTS)))  # over all layouts, 20 in an acceptance run
    for step in sorted(random.Random(layout).sample(range(1, 13), kills)):
        kill_after(start(recipe, ranks), tmp_path / "killed", step)
    train(recipe, ranks)
    assert reported(tmp_path / "killed") == reported(tmp_path / "whole")
    assert progress(tmp_path / "killed") == progress(tmp_path / "whole")
    assert same_weights(tmp_path / "whole", tmp_path / "killed")
    assert len(list((tmp_path / "killed").glob("step_*"))) == 2  # keep


@of_acceptance
def test_a_run_changes_its_layout_three_times(three_epochs: dict[str, Any], tmp_path: Path) -> None:
    """DP2, one process, TP2, PP2: each document once per epoch, in the same order, and the same losses."""
    train(write_recipe(three_epochs, tmp_path, "whole", megatron={}), 1)
    life: list[tuple[int, dict[str, Any]]] = [
        (2, {}),
        (1, {}),
        (2, {"tensor_model_parallel_size": 2}),
        (2, {"pipeline_model_parallel_size": 2}),
    ]
    run = tmp_path / "changing"
    for number, (ranks, megatron) in enumerate(life):
        recipe = write_recipe(three_epochs, tmp_path, run.name, megatron={**DISTRIBUTED, **megatron})
        if number + 1 < len(life):
            kill_after(start(recipe, ranks), run, 3 * number + 4)
        else:
            assert "resuming" in train(recipe, ranks)
    assert progress(run)["ledger"] == progress(tmp_path / "whole")["ledger"]
    assert [entry["documents"] for entry in progress(run)["ledger"]] == [18, 18, 18]
    for found, expected in zip(reported(run), reported(tmp_path / "whole"), strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert (found["step"], found["tokens"]) == (expected["step"], expected["tokens"])


def test_a_finished_run_does_nothing_and_refuses_another_recipe(three_epochs: dict[str, Any], tmp_path: Path) -> None:
    recipe = write_recipe(three_epochs, tmp_path, "run")
    train(recipe, 1)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.distcp")}
    assert "is finished after step 14" in train(recipe, 1)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.distcp")} == before
    write_model(tmp_path / "other", hidden_size=32)
    for change, message in (
        ("seed=5", "trained with other data, length, batch size, seed or objective"),
        (f"model={tmp_path / 'other'}", "trained with another model"),
        ("megatron.bf16=true", "trained with another use_distributed_optimizer or bf16"),
        ("data.stages.0.name=renamed", "trained with other data, length, batch size, seed or objective"),
    ):
        refused = run_davinci("train", recipe, change)
        assert refused.returncode == 2 and message in refused.stderr


def test_a_stage_with_another_layout_begins_in_fresh_processes(recipe_values: dict[str, Any], tmp_path: Path) -> None:
    values = copy.deepcopy(recipe_values)
    [first] = values["data"]["stages"]
    second = {**first, "name": "long", "seq_length": 128, "megatron": {"context_parallel_size": 2}}
    values["data"]["stages"].append(second)
    recipe = write_recipe(values, tmp_path, "run", megatron=DISTRIBUTED)
    said = train(recipe, 1)
    assert "stage long has another layout (context_parallel_size 2)" in said and "multiple of 2 processes" in said
    assert progress(tmp_path / "run")["step"] == 5
    refused = run_davinci("train", recipe)
    assert refused.returncode == 2 and "cannot hold tensor 1 x pipeline 1 x context 2" in refused.stderr
    assert "resuming" in train(recipe, 2)
    assert progress(tmp_path / "run")["step"] == 10
    assert [(entry["stage"], entry["documents"]) for entry in progress(tmp_path / "run")["ledger"]] == [
        ("only", 18),
        ("long", 18),
    ]
    in_one_layout = copy.deepcopy(values)
    in_one_layout["data"]["stages"][1].pop("megatron")
    train(write_recipe(in_one_layout, tmp_path, "alone"), 1)
    for found, expected in zip(reported(tmp_path / "run"), reported(tmp_path / "alone"), strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert yaml.safe_load(recipe.read_text())["data"]["stages"][1]["seq_length"] == 128
