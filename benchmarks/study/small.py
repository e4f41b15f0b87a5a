"""The small model: 5.5 million parameters, pre-trained here on Python's standard library and on sums."""

import json
import shutil
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.corpus import CorpusWriter
from data_prep.tokenizers import load_tokenizer, tokenizer_file
from megatron_davinci.rl.problems import ProblemKeys, write_problems
from megatron_davinci.testing.tiny_model import write_model_directory
from study.cells import Setting
from study.commands import annotate, davinci, tokenize, traces, train
from study.recipes import TEMPLATES, PostTraining, Scale, mid_training, post_training
from study.texts import Sum, functions, sums

MODEL: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 6,
    "vocab_size": 4096,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
FORMS, PROMPTS = ("format", "format-sums"), ("next", "next_free")
"""Corpora whose next tokens the form of answers is learnt on, and templates that it is learnt with."""
THOUGHTS = (8, 32)  # tokens of a trace's thought
LONGEST = 160  # tokens of a trace
# Chosen on the functions of the split "tune": see README.md.
SCALE = Scale(
    steps=40,
    documents=16,
    positions=4,
    lr=1e-4,
    difficulty={"thresholds": [0.1, 0.9, 1.9]},
    budget={"initial": 24, "gamma": 0.4, "min": 10},
    longest_response=48,
    temperature=0.7,
    length_only_if_correct=True,
    normalization="per_component_tokens",
    corpora=("train", "train-sums"),
)
POST = PostTraining(steps=80, problems=32, lr=1e-5, longest_response=96, temperature=0.7)


def setting(folder: Path, seeds: int = 3) -> Setting:
    """The grid of the small model, in FOLDER."""
    return Setting(
        "small",
        folder,
        prepare=partial(prepare, folder),
        recipe=partial(mid_training, SCALE, folder),
        positions=350,
        source="file",
        seeds=seeds,
        post_trained=("format", "ntp", "rpt", "rmt"),
        problems=partial(post_training, POST, folder),
    )


def prepare(folder: Path) -> None:
    """FOLDER/base and FOLDER/format (Hugging Face directories), and the corpora; goes on where it was interrupted."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_texts(folder)
    model = folder / "model"
    for name in ("pretrain", "pretrain-sums", "format", "format-sums", "train", "train-sums", "tune", "test"):
        tokenize(folder / f"{name}.jsonl", model, folder / name)
    _train_to(folder, "base", _pretraining(folder))
    for name in ("train", "train-sums", "tune", "test"):
        annotate(folder / name, folder / "base")
    for corpus, template in product(FORMS, PROMPTS):
        out = folder / f"traces-{corpus}-{template}"
        traces(folder / corpus, model, out, TEMPLATES / f"{template}.txt", THOUGHTS, LONGEST, 3)
    _train_to(folder, "format", _format(folder))


def _write_texts(folder: Path) -> None:
    if (folder / "problems.idx").is_file():  # what is written last
        return
    code, numbers = functions(), sums()
    if not (folder / "model/config.json").exists():
        shutil.rmtree(folder / "model", ignore_errors=True)
        pretrained = [*(each.text for each in code["pretrain"]), *_told(numbers["pretrain"])]
        write_model_directory(pretrained, folder / "model", **MODEL)
    for split, functions_of in code.items():
        _write_jsonl(folder / f"{split}.jsonl", (each._asdict() for each in functions_of))
    for split in ("pretrain", "format", "train"):
        _write_jsonl(folder / f"{split}-sums.jsonl", ({"text": text} for text in _told(numbers[split])))
    if not (folder / "traces-sums.idx").exists():
        _write_sum_traces(folder / "model", [*numbers["format"], *numbers["pretrain"]], folder / "traces-sums")
    for name, split in (("problems-held-out", "test"), ("problems", "problems")):
        lines_of_sums = [{"problem": s.question, "answer": s.answer, "level": s.level} for s in numbers[split]]
        _write_jsonl(folder / f"{name}.jsonl", lines_of_sums)
        if not (folder / f"{name}.idx").exists():
            write_problems([folder / f"{name}.jsonl"], folder / "model", folder / name, ProblemKeys(difficulty="level"))


def _told(numbers: Iterable[Sum]) -> list[str]:
    return [f"{each.question}{each.steps}\n" for each in numbers]


def _write_jsonl(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _write_sum_traces(model: Path, numbers: Sequence[Sum], prefix: Path) -> None:
    """Sums with their steps as the thought; what is given is not trained."""
    tokenizer, description = load_tokenizer(tokenizer_file(model))
    given = tokenizer.encode([f"{each.question}<think>\n" for each in numbers])
    learnt = tokenizer.encode([f"{each.steps}</think>\\boxed{{{each.answer}}}" for each in numbers])
    writer = CorpusWriter(prefix, description, masked=True)
    for before, after in zip(given, learnt, strict=True):
        ids = np.array([*before, *after, tokenizer.eod], np.int64)
        mask = np.arange(len(ids)) >= len(before)
        writer.add_flat(ids, np.array([len(ids)], np.int64), loss_mask=mask.astype(np.uint8))
    writer.commit({"made_by": "benchmarks/study"})


def _pretraining(folder: Path) -> dict[str, Any]:
    blend = [{"corpus": str(folder / name)} for name in ("pretrain", "pretrain-sums")]
    return {
        "model": str(folder / "model"),
        "data": {
            "seq_length": 512,
            "long_documents": "split",
            "stages": [{"name": "pretrain", "blend": blend, "epochs": 2}],
        },
        "batch": {"global_batch_size": 16, "unit": "sequences"},
        "schedule": {"lr": 2e-3, "min_lr": 2e-4},
        "report": {"at_checkpoints": False},
        "checkpoint": {"dir": str(folder / "runs/base"), "save_interval": 50, "save_total_limit": 1},
    }


def _format(folder: Path) -> dict[str, Any]:
    names = [f"traces-{corpus}-{template}" for corpus, template in product(FORMS, PROMPTS)]
    blend: list[dict[str, Any]] = [{"corpus": str(folder / name)} for name in names]
    blend.append({"corpus": str(folder / "traces-sums"), "repeat": 2})
    return {
        "model": str(folder / "model"),
        "init_from": str(folder / "base"),
        "data": {"seq_length": 1024, "stages": [{"name": "format", "blend": blend}]},
        "batch": {"global_batch_size": 64},
        "schedule": {"lr": 1e-3, "lr_warmup_fraction": 0.1},
        "report": {"at_checkpoints": False},
        "checkpoint": {"dir": str(folder / "runs/format"), "save_interval": 50, "save_total_limit": 1},
    }


def _train_to(folder: Path, name: str, recipe: dict[str, Any]) -> None:
    """FOLDER/NAME: what a recipe makes, for Hugging Face."""
    if not (folder / name).exists():
        train(recipe)
        davinci("convert", "megatron-to-hf", recipe["checkpoint"]["dir"], folder / name)
