"""The language of doors, taught and annotated, and runs that learn it from their own samples."""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from megatron_davinci.checkpoint.convert import export_to_hf
from megatron_davinci.demo import doors
from megatron_davinci.recipe import parse_recipe
from megatron_davinci.rollout.records import write_rollouts
from megatron_davinci.testing.gather import gather_parameters
from megatron_davinci.testing.sampler import sample
from megatron_davinci.train.annotate import annotate
from megatron_davinci.train.loop import build_trainer, train
from megatron_davinci.train.optimizer import build_optimizer, set_learning_rate
from megatron_davinci.train.parallel import model_parallel, world
from megatron_davinci.train.prepare import inspect
from megatron_davinci.train.reinforcement import Reinforcement

DOCUMENTS, RESPONSES, LONGEST, END = 16, 8, 12, 0
LEARNING_RATE = 2e-3


def teach(folder: Path) -> None:
    """FOLDER/hf: a model that knows the form of answers; FOLDER/docs: an annotated corpus of what is true."""
    model = folder / "model"
    doors.write_model(model)
    doors.write_lessons(model, folder / "lessons", 4096, seed=0)
    doors.write_documents(model, folder / "docs", DOCUMENTS)
    train(
        parse_recipe(
            {
                "model": str(model),
                "data": {
                    "seq_length": 1024,
                    "stages": [{"name": "form", "blend": [{"corpus": str(folder / "lessons")}]}],
                },
                "batch": {"global_size": 32},
                "schedule": {"lr": 3e-3},
                "checkpoint": {"dir": str(folder / "form"), "every_steps": 1000},
            }
        )
    )
    export_to_hf(folder / "form", folder / "hf", None)
    annotate(folder / "docs", folder / "hf", "top16", {})


def recipe(folder: Path, steps: int, rollouts: str, **objective: Any) -> dict[str, Any]:
    """Reinforcement alone; a step takes all documents."""
    return {
        "model": str(folder / "hf"),
        "init_from": str(folder / "hf"),
        "data": {
            "seq_length": 512,
            "stages": [{"name": "doors", "blend": [{"corpus": str(folder / "docs")}], "epochs": steps}],
        },
        "batch": {"global_size": DOCUMENTS},
        "schedule": {"lr": LEARNING_RATE, "decay": "constant", "warmup_steps": 0},
        "objective": {
            "kind": "rmt",
            "rollouts": str(folder / rollouts),
            "template": doors.TEMPLATE,
            "responses": RESPONSES,
            "response_tokens": LONGEST,
            "budget": {"first": doors.BUDGET, "gamma": 1.0},
            **objective,
        },
        "checkpoint": {"dir": str(folder / f"run-{rollouts}"), "every_steps": 1000},
    }


def learn(values: dict[str, Any], steps: int) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    """The first steps: sample, write the rollouts, replay them, step. Gives their metrics, and the last weights."""
    parsed = parse_recipe(values)
    run = inspect(parsed)
    stage, inputs = run.batches.stages[0], run.reinforcement[0]
    assert inputs is not None
    found = []
    with world(), model_parallel(stage.recipe, parsed.seed) as device:
        trainer = build_trainer(parsed, stage.recipe, run.model, device)
        optimizer = build_optimizer(stage.recipe.megatron, trainer.chunks)
        set_learning_rate(optimizer, parsed.schedule.lr)
        reinforcement = Reinforcement(stage, inputs, first_step=0)
        for step in range(steps):
            asked = inputs.asker.asks(step)
            groups = sample(trainer, inputs.asker, asked, RESPONSES, LONGEST, END, [parsed.seed, step])
            header = {"step": step, "policy_step": step, "tokenizer": run.batches.tokenizer["fingerprint"]}
            header["temperature"] = inputs.asker.options.temperature
            write_rollouts(inputs.replay.file(step), header, groups)
            prepared = reinforcement.step(step, device)
            found.append(prepared.metrics(trainer.step(optimizer, prepared.work).sums))
            print(f"step {step}: match {found[-1]['reward_match']:.3f}", file=sys.stderr)
        weights = {name: w.numpy() for name, w in gather_parameters(trainer, lambda p: p.data).items()}
    return found, weights
