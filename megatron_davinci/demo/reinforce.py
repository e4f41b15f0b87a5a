"""Reinforcement mid-training in small: the language of doors, a model that knows the form of answers, a recipe."""

from pathlib import Path
from typing import Any

from megatron_davinci.demo import toy_language as toy_language

DOCUMENTS, RESPONSES, MAX_TOKENS = 16, 8, 12
LESSONS, LESSONS_PER_STEP = 4096, 32


def write_language(folder: Path, **model: Any) -> None:
    """FOLDER/model, config.json and tokenizer; FOLDER/lessons, format traces; FOLDER/docs, what is true, and
    FOLDER/problems, the same with answers. `model` changes fields of config.json."""
    toy_language.write_model(folder / "model", **model)
    toy_language.write_lessons(folder / "model", folder / "lessons", LESSONS, seed=0)
    toy_language.write_documents(folder / "model", folder / "docs", DOCUMENTS)
    toy_language.write_toy_problems(folder / "model", folder / "problems", DOCUMENTS)


def format_recipe(folder: Path) -> dict[str, Any]:
    """Fine-tuning on the form of answers, in FOLDER/form."""
    stage = {"name": "form", "blend": [{"corpus": str(folder / "lessons")}]}
    return {
        "model": str(folder / "model"),
        "data": {"seq_length": 1024, "stages": [stage]},
        "batch": {"global_batch_size": LESSONS_PER_STEP},
        "schedule": {"lr": 3e-3},
        "checkpoint": {"dir": str(folder / "form"), "save_interval": 1000},
    }


def toy_recipe(folder: Path, steps: int, name: str, **objective: Any) -> dict[str, Any]:
    """Reinforcement by the engine's rollouts, in FOLDER/NAME; a step takes all documents, annotated, of FOLDER/docs.

    It begins with FOLDER/hf.
    """
    return {
        "model": str(folder / "hf"),
        "init_from": str(folder / "hf"),
        "data": {
            "seq_length": 512,
            "stages": [{"name": "doors", "blend": [{"corpus": str(folder / "docs")}], "epochs": steps}],
        },
        "batch": {"global_batch_size": DOCUMENTS},
        "schedule": {"lr": 2e-3, "lr_decay_style": "constant", "lr_warmup_iters": 0},
        "objective": {
            "kind": "rmt",
            "template": toy_language.TEMPLATE,
            "group_size": RESPONSES,
            "max_tokens": MAX_TOKENS,
            "budget": {"initial": toy_language.BUDGET, "gamma": 1.0},
            **objective,
        },
        "report": {"prompts": 4, "max_tokens": MAX_TOKENS},
        "checkpoint": {"dir": str(folder / name), "save_interval": 1000},
    }
