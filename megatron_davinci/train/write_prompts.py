"""`davinci rmt prompts`: the prompts of a run's next step as a file. Torch-free."""

from pathlib import Path
from typing import Any

from data_prep import InputError
from data_prep.io.files import jsonl_writer, refuse_existing
from megatron_davinci.config import Recipe
from megatron_davinci.train.prepare import inspect_run


def write_prompts(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Write the next step's prompts; returns the header, and the name of the file of rollouts that answers them.

    Raises InputError where the next step needs none.
    """
    refuse_existing(out)
    run = inspect_run(recipe)
    inputs = run.inputs[run.stage] if run.step < run.batches.num_steps else None
    lines = None if inputs is None else inputs.prompt_lines(run.step)
    if inputs is None or lines is None:
        raise InputError(f"{recipe.checkpoint.dir} is after step {run.step}: the next one, if any, needs no rollouts")
    header = next(lines)
    with jsonl_writer(out) as writer:
        writer.write(header)
        for line in lines:
            writer.write(line)
    return {"out": str(out), **header, "prompts": writer.count - 1, "rollouts": str(inputs.answer_file(run.step))}
