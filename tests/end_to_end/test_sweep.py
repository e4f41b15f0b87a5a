"""Property: what a sweep over checkpoints measures is what training measured when it saved them, on any layout."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import of_acceptance, write_corpus
from forked import Ended, run_davinci_on_ranks
from training import train, write_recipe


@pytest.fixture
def recipe(recipe_values: dict[str, Any], tmp_path: Path) -> Path:
    [stage] = recipe_values["data"]["stages"]
    write_corpus(tmp_path / "other", [9, 21, 33, 40, 7, 64], seed=1)
    stage["blend"].append({"corpus": str(tmp_path / "other")})
    stage["epochs"] = 4
    recipe_values["evaluation"] = {"eval_interval": 3, "held_out_documents": 2}
    kept = {"dir": str(tmp_path / "run"), "save_interval": 3, "save_total_limit": 100}
    return write_recipe(recipe_values, tmp_path, "run", batch={"global_batch_size": 8}, checkpoint=kept)


def evaluate_checkpoints(recipe: Path, out: str, *more: object, ranks: int = 1) -> Ended:
    return run_davinci_on_ranks(ranks, "eval", "checkpoints", recipe, "--out", recipe.parent / out, *more)


@of_acceptance
def test_checkpoints_score_what_they_scored_in_training(recipe: Path) -> None:
    train(recipe, 1)
    lines = (recipe.parent / "run" / "evaluation.jsonl").read_text().splitlines()
    known = {line["step"]: line["losses"] for line in map(json.loads, lines)}
    (recipe.parent / "scores.json").write_text('{"pass@1": {"3": 0.1, "6": 0.2, "9": 0.25}}')
    result = evaluate_checkpoints(recipe, "alone", "--scores", recipe.parent / "scores.json")
    assert result.returncode == 0, result.stderr
    two = evaluate_checkpoints(recipe, "two", "megatron.tensor_model_parallel_size=2", ranks=2)
    assert two.returncode == 0, two.stderr
    for out in ("alone", "two"):
        held = json.loads((recipe.parent / out / "results.json").read_text())
        for source in ("corpus", "other"):
            measured = {int(step): loss for step, loss in held[f"loss on {source}"]["values"].items()}
            assert measured == pytest.approx({step: losses[source] for step, losses in known.items()}, rel=1e-5)
            assert held[f"loss on {source}"]["fit"]["r_squared"] <= 1.0
    assert "pass@1" in (recipe.parent / "alone" / "table.md").read_text()


def test_a_sweep_over_nothing_is_one_sentence(recipe: Path) -> None:
    for more, sentence in (
        ([], "has no checkpoint"),
        (["--stage", "none"], "has no stage none: it has only"),
        (["evaluation=null"], "holds no documents out"),
    ):
        result = evaluate_checkpoints(recipe, "out", *more)
        assert result.returncode == 2 and sentence in result.stderr and result.stderr.count("\n") == 1
        assert not (recipe.parent / "out").exists()
