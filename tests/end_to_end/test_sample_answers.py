"""The same prompts at each checkpoint: what the trainer writes is what transformers says with the exported weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import EFFORT
from forked import run_davinci
from language import write_recipe
from training import train

from data_prep.corpus import Corpus
from megatron_davinci.demo.reinforce import format_recipe, toy_recipe
from megatron_davinci.report.metrics_file import read_metrics
from megatron_davinci.weights.to_huggingface import export_to_hf

MAX_TOKENS = 6
LAYOUTS: dict[str, dict[str, Any]] = {
    "TP2+SP": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "PP2": {"pipeline_model_parallel_size": 2},
    "DP2": {"use_distributed_optimizer": True, "overlap_param_gather": True, "overlap_grad_reduce": True},
}


@pytest.fixture
def write(taught: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a recipe of next-token training on the documents of the language."""

    def write(name: str, **changes: dict[str, Any]) -> Path:
        values = format_recipe(taught)
        values |= {"init_from": str(taught / "hf"), "report": {"prompts": 3, "max_tokens": MAX_TOKENS}}
        values["data"]["stages"] = [{"name": "docs", "blend": [{"corpus": str(taught / "docs")}], "epochs": 2}]
        values["batch"]["global_batch_size"] = 8
        values["checkpoint"] |= {"save_interval": 2, "save_total_limit": 9}
        return write_recipe(tmp_path, name, values, **changes)

    return write


def said_by_transformers(exported: Path, ids: list[int]) -> str:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(exported), AutoTokenizer.from_pretrained(exported)
    new = model.generate(torch.tensor([ids]), max_new_tokens=MAX_TOKENS, do_sample=False)[0, len(ids) :]
    return str(tokenizer.decode(new))


@pytest.mark.parametrize("layout", LAYOUTS if EFFORT > 1 else ["PP2"])
def test_answers_are_those_of_the_checkpoints_weights(
    write: Callable[..., Path], taught: Path, tmp_path: Path, layout: str
) -> None:
    train(write("run", megatron=LAYOUTS[layout]), 2)
    lines, documents = read_metrics(tmp_path / "run" / "answers.jsonl"), Corpus(taught / "docs")
    assert [(line["step"], line["prompt"]) for line in lines] == [(s, p) for s in (0, 2, 4) for p in range(3)]
    assert len({line["where"] for line in lines}) == 3
    exported = {0: taught / "hf", 2: tmp_path / "at2", 4: tmp_path / "at4"}
    for step in (2, 4):
        export_to_hf(tmp_path / "run" / f"step_{step:07d}", exported[step])
    for line in lines:
        document = documents[int(line["where"].split()[1])].tolist()
        given = document[: len(document) // 2]
        assert line["text"] == said_by_transformers(exported[line["step"]], given), line
    assert (tmp_path / "run" / "report.html").is_file()


def test_where_prompts_cannot_be_answered_it_is_said(write: Callable[..., Path], taught: Path, tmp_path: Path) -> None:
    for change, said in (
        (
            {"megatron": {"context_parallel_size": 2}},
            "context_parallel_size 2 and fp8 null: prompts can be answered with",
        ),
        ({"tokenizer": None}, "set tokenizer to the directory of the model's tokenizer"),
    ):
        recipe = yaml.safe_load(write("run").read_text()) | change
        if "tokenizer" in change:
            bare = tmp_path / "bare"
            bare.mkdir()
            (bare / "config.json").write_bytes((taught / "model" / "config.json").read_bytes())
            recipe |= {"model": str(bare), "init_from": None}
        (tmp_path / "refused.yaml").write_text(yaml.safe_dump(recipe))
        refused = run_davinci("train", tmp_path / "refused.yaml")
        assert refused.returncode == 2 and said in refused.stderr, refused.stderr


def test_a_report_that_cannot_be_written_ends_no_run(taught: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "run", toy_recipe(taught, 2, "run"))
    (tmp_path / "run" / "report.html").mkdir(parents=True)
    (tmp_path / "run" / "report.html" / "x").touch()
    assert "the report could not be written: " in train(recipe, 1)
    assert (tmp_path / "run" / "latest").is_file()
    (tmp_path / "off").mkdir()
    train(write_recipe(tmp_path, "off", toy_recipe(taught, 1, "off"), report={"at_checkpoints": False}), 1)
    assert not (tmp_path / "off" / "report.html").exists() and (tmp_path / "off" / "latest").is_file()


def test_weights_and_biases_gets_rollouts(taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    values = {**toy_recipe(taught, 2, "run"), "wandb": {"project": "trial"}}
    train(write_recipe(tmp_path, "run", values), 1)
    [table] = (tmp_path / "run" / "wandb").glob("offline-run-*/files/media/table/rollouts_2_*.table.json")
    held = yaml.safe_load(table.read_text())
    assert held["columns"][:3] == ["corpus", "document", "position"] and len(held["data"]) == 50
    assert {row[held["columns"].index("corpus")] for row in held["data"]} == {"docs"}
