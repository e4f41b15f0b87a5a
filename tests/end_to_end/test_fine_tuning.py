"""Mid-training, then fine-tuning on conversations, is one recipe; what the mask leaves out contributes nothing."""

import copy
import gzip
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import tokenizers
import torch
from conftest import write_corpus, write_model
from huggingface import gradients
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from training import reported, same_weights, train, write_recipe

from data_prep.corpus import Corpus
from megatron_davinci.report.metrics_file import read_metrics
from megatron_davinci.testing import run_on_ranks
from megatron_davinci.weights.to_huggingface import export_to_hf

DAVINCI = [sys.executable, "-c", "from megatron_davinci.cli import main; main()"]
CHATML = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.fixture(scope="module")
def corpora(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Solutions of HumanEval as text, GSM8K as conversations, and a small model with a tokenizer of their words."""
    folder = tmp_path_factory.mktemp("corpora")
    code = [r["prompt"] + r["canonical_solution"] for r in read(shared_data / "benchmarks" / "humaneval")]
    math = list(read(shared_data / "benchmarks" / "gsm8k"))[:64]
    turns = [[("user", r["question"]), ("assistant", r["answer"])] for r in math]
    messages = [{"messages": [{"role": role, "content": text} for role, text in turn]} for turn in turns]
    (folder / "code.jsonl").write_bytes(b"\n".join(orjson.dumps({"text": text}) for text in code[:64]))
    (folder / "chat.jsonl").write_bytes(b"\n".join(map(orjson.dumps, messages)))
    (folder / "template.jinja").write_text(CHATML)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.train_from_iterator(
        code, BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=ByteLevel.alphabet())
    )
    write_model(folder / "model", vocab_size=700, max_position_embeddings=1024)
    tokenizer.save(str(folder / "model" / "tokenizer.json"))
    for arguments in (
        ["code.jsonl", "--append-eod", "--out", "code"],
        ["chat.jsonl", "--chat", "--chat-template", "template.jinja", "--out", "chat"],
    ):
        subprocess.run([*DAVINCI, "data", "tokenize", *arguments, "--tokenizer", "model"], cwd=folder, check=True)
    return folder


def read(folder: Path) -> Iterator[dict[str, Any]]:
    """Records of a benchmark's JSON Lines, packed or not."""
    [path] = folder.glob("*.jsonl*")
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return map(orjson.loads, data.splitlines())


def two_stages(corpora: Path) -> dict[str, Any]:
    code = {"name": "mid-training", "blend": [{"corpus": str(corpora / "code")}]}
    chat = {
        "name": "fine-tuning",
        "blend": [{"corpus": str(corpora / "chat")}],
        "epochs": 2,
        "batch": {"global_batch_size": 16},
        "schedule": {"lr": 1e-3, "lr_warmup_fraction": 0.1},
    }
    return {
        "model": str(corpora / "model"),
        "megatron": {},
        "data": {"seq_length": 1024, "long_documents": "drop", "stages": [code, chat]},
        "batch": {"global_batch_size": 8},
        "schedule": {"lr": 3e-3},
        "evaluation": {"eval_interval": 5, "held_out_documents": 8},
    }


def test_mid_training_then_fine_tuning_is_one_recipe(corpora: Path, tmp_path: Path) -> None:
    values = two_stages(corpora)
    layout = {
        "megatron": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
        "batch": {"global_batch_size": 8},
    }
    train(write_recipe(values, tmp_path, "both", **layout), 2)
    lines = reported(tmp_path / "both")
    stages = {name: [line for line in lines if line["stage"] == name] for name in ("mid-training", "fine-tuning")}
    for name, steps in stages.items():
        assert steps[-1]["loss"] < steps[0]["loss"] - 0.3, name
    assert all(line["labels"] < 0.8 * line["tokens"] for line in stages["fine-tuning"])  # the questions are masked
    assert all(line["labels"] == line["tokens"] - 8 for line in stages["mid-training"][:-1])
    assert len(stages["fine-tuning"]) == 7 and stages["fine-tuning"][0]["lr"] == 1e-3  # one step of warm-up, its own

    evaluations = read_metrics(tmp_path / "both" / "evaluation.jsonl")
    before, after = ([e for e in evaluations if source in e["losses"]] for source in ("code", "chat"))
    assert before[-1]["losses"]["code"] < before[0]["losses"]["code"]
    assert after[-1]["losses"]["chat"] < after[0]["losses"]["chat"]
    assert evaluations[-1]["step"] == lines[-1]["step"]


def test_the_handoff_is_that_of_two_runs(corpora: Path, tmp_path: Path) -> None:
    """Exporting after mid-training, and fine-tuning the export in a run of its own, gives the same weights."""
    values = two_stages(corpora)
    values.pop("evaluation")
    values["data"]["stages"][1]["epochs"] = 1
    kept = {"batch": {"global_batch_size": 8}}
    train(write_recipe(values, tmp_path, "both", **kept), 1)
    first, second = values["data"]["stages"]
    train(write_recipe({**values, "data": {**values["data"], "stages": [first]}}, tmp_path, "one", **kept), 1)
    export_to_hf(tmp_path / "one", tmp_path / "between")
    alone = {**values, "init_from": str(tmp_path / "between"), "data": {**values["data"], "stages": [second]}}
    train(write_recipe(alone, tmp_path, "two", **kept), 1)
    assert same_weights(tmp_path / "both", tmp_path / "two")


def test_what_follows_the_last_trained_token_changes_no_gradient(recipe_values: dict[str, Any], tmp_path: Path) -> None:
    lengths = [40, 30, 20, 35]
    masks = [[0] * 5 + [1] * (length - 15) + [0] * 10 for length in lengths]  # each ends in a turn of the user
    recipes = []
    for name in ("original", "changed"):
        prefix = write_corpus(tmp_path / name, lengths, masks=masks)
        if name == "changed":
            tokens = np.memmap(f"{prefix}.bin", np.uint16, "r+")
            for start, length in zip(Corpus(prefix).starts, lengths, strict=True):
                tokens[start + length - 10 : start + length] ^= 1
            tokens.flush()
        recipe_values["data"]["stages"][0]["blend"] = [{"corpus": str(prefix)}]
        recipes.append(copy.deepcopy(recipe_values))
    [found] = run_on_ranks(gradients, 1, recipes)
    assert found[0][0] == found[1][0]
    assert all(torch.equal(gradient, found[1][1][name]) for name, gradient in found[0][1].items())
