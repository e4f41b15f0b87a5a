"""The prompts of a run's next step as a file. Torch-free."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep import InputError
from data_prep.files import jsonl_writer, refuse_existing
from megatron_davinci.recipe import Recipe
from megatron_davinci.rollout.records import FORMAT
from megatron_davinci.train.prepare import inspect


def write_prompts(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Write the next step's prompts; returns what is worth telling, with the name of the file of rollouts to make.

    Raises InputError where the next step needs none.
    """
    refuse_existing(out)
    run = inspect(recipe)
    inputs = run.reinforcement[run.stage] if run.step < run.batches.num_steps else None
    if inputs is None:
        raise InputError(f"{recipe.checkpoint.dir} is after step {run.step}: the next one, if any, needs no rollouts")
    asked = inputs.asker.asks(run.step - run.batches.first_step(run.stage))
    options = inputs.asker.options
    header = {
        "format": FORMAT,
        "step": run.step,
        "policy_step": run.step,
        "tokenizer": run.batches.tokenizer["fingerprint"],
        "temperature": options.temperature,
        "responses": options.responses,
        "response_tokens": options.response_tokens,
    }
    with jsonl_writer(out) as writer:
        writer.write(header)
        for about in asked:
            ids = about.ids.tolist()
            for each in about.asks:
                writer.write({**asdict(each), "prompt_ids": inputs.asker.prompt(ids, each.position, each.budget)})
    return {"prompts": str(out), **header, "asks": writer.count - 1, "rollouts": str(inputs.replay.file(run.step))}
