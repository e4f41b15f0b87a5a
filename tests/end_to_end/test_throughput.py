"""Property: a report of throughput counts the tokens that the ledger counts, and leaves nothing behind."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import of_acceptance, write_corpus
from forked import Ended, run_davinci
from test_convert import write_weights
from training import train

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe(recipe_values: dict[str, Any], tmp_path: Path) -> Path:
    recipe_values["data"]["stages"][0]["epochs"] = 3
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_values))
    return tmp_path / "recipe.yaml"


def bench(*arguments: str) -> Ended:
    return run_davinci("bench", *arguments, timeout=600)


@of_acceptance
def test_tokens_are_the_ledgers_and_a_layout_that_cannot_run_says_why(recipe: Path, tmp_path: Path) -> None:
    grid = ["--grid", "megatron.tensor_model_parallel_size=2,3"]
    done = bench(
        "train", str(recipe), "--ranks", "2", "--steps", "3", "--warmup", "0", *grid, "--out", str(tmp_path / "r"),
        "--calibrate", str(tmp_path / "here.yaml"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ran, refused = json.loads((tmp_path / "r.json").read_text())
    assert "num_attention_heads is 4" in refused["fault"] and "figures" not in refused
    assert not (tmp_path / "run").exists()
    train(recipe, 1)
    ledger = json.loads(next((tmp_path / "run").glob("step_*/progress.json")).read_text())["ledger"]
    assert ran["figures"]["tokens"] == sum(entry["tokens"] for entry in ledger)
    assert ran["machine"]["ranks"] == 2 and ran["figures"]["steps"] == 3
    table, told = done.stdout[: -len(done.stdout.splitlines()[-1]) - 1], done.stdout.splitlines()[-1]
    assert table == (tmp_path / "r.md").read_text() and "explains the seconds of 1 trials" in told
    asked = ["plan", str(recipe), "--gpus", "2", "--gpu", str(tmp_path / "here.yaml"), "--json"]
    plan = run_davinci(*asked)
    plan.check_returncode()
    assert json.loads(plan.stdout)["stages"][0]["own"]["step_seconds"] > 0
    assert "1.000" in bench("compare", str(tmp_path / "r.json"), str(tmp_path / "r.json")).stdout


def test_data_and_conversion(tmp_path: Path, qwen_json: Path) -> None:
    (tmp_path / "t.jsonl").write_text("".join(f'{{"text": "document {number}"}}\n' for number in range(50)))
    told = bench("data", str(tmp_path / "t.jsonl"), "--tokenizer", str(qwen_json), "--seq-length", "64", "--json")
    found = json.loads(told.stdout)
    assert found["documents"] == 50 and found["tokens"] > 150 and 0 < found["filled"] <= 1
    write_weights(tmp_path / "hf")
    before = sorted(tmp_path.iterdir())
    converted = json.loads(bench("convert", str(tmp_path / "hf"), "--json").stdout)
    assert converted["megatron_to_hf_gigabytes_per_second"] > 0 and sorted(tmp_path.iterdir()) == before


def test_bad_input_is_one_sentence(recipe: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "c", [3])
    for arguments, sentence in (
        (["train", str(recipe), "--steps", "2", "--warmup", "3"], "nothing would be measured"),
        (["convert", str(tmp_path)], "has no safetensors"),
    ):
        refused = bench(*arguments)
        assert refused.returncode == 2 and sentence in refused.stderr and refused.stderr.count("\n") == 1
