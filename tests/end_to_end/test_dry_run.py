"""Property: a dry run says what a run would do, refuses what it would refuse, and leaves nothing behind."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked import Ended, run_davinci


@pytest.fixture
def recipe(recipe_values: dict[str, Any], tmp_path: Path) -> Path:
    recipe_values["megatron"] = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_values))
    return path


def dry_run(recipe: Path, *more: str) -> Ended:
    return run_davinci("train", recipe, *more, "--dry-run", cwd=recipe.parent)


def test_it_says_what_lies_where(recipe: Path, tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    facts = json.loads(dry_run(recipe, "--json").stdout)
    [stage] = facts["stages"]
    assert (facts["steps"], facts["steps_done"], stage["documents_an_epoch"]) == (1, 0, 18)
    assert stage["ranks_a_replica"] == 4 and [rank["layers"] for rank in stage["pipeline_ranks"]] == [
        [[0, 1]],
        [[2, 3]],
    ]
    state = stage["state_bytes_a_rank"]
    assert state["one_replica"] == 16 * max(rank["parameters"] for rank in stage["pipeline_ranks"])  # fp32, and Adam
    hidden, norms = 64, 4 * 2 * 64 + 64
    held = 2 * sum(rank["parameters"] for rank in stage["pipeline_ranks"])
    assert held == facts["parameters"] + norms and facts["parameters"] > 2 * 256 * hidden
    said = dry_run(recipe).stdout
    assert f"{facts['parameters']:,} parameters" in said and "pipeline rank 1: layers 2 to 3, output" in said
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "override, sentence",
    [
        ("megatron.tensor_model_parallel_size=3", "num_attention_heads is 4, which tensor_model_parallel_size = 3"),
        ("megatron.recompute_granularity=selectively", "wants a value of type Optional[Literal['full', 'selective']]"),
        ("megatron.recompute_granularity=full", "Megatron-Core refuses the recipe's megatron section"),
    ],
)
def test_it_refuses_what_training_would(recipe: Path, override: str, sentence: str) -> None:
    result = dry_run(recipe, override)
    assert result.returncode == 2 and sentence in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "template, sentence",
    [("suffix_free_1", "template suffix_free_1 lacks {budget}"), ("suffix_0", "template 'suffix_0' is unknown")],
)
def test_a_prompt_template_is_checked_before_its_corpora_are_there(recipe: Path, template: str, sentence: str) -> None:
    overrides = ("data.stages.0.blend=[{corpus: nowhere}]", "batch.unit=samples", "objective.kind=rmt")
    assert "nowhere" in dry_run(recipe, *overrides).stdout
    result = dry_run(recipe, *overrides, f"objective.template={template}")
    assert result.returncode == 2 and sentence in result.stderr and result.stderr.count("\n") == 1
