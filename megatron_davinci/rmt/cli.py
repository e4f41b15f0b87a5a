"""`davinci rmt ...`: what reinforcement mid-training needs beside training itself."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Reinforcement mid-training: difficulty of tokens, prompts.")


class Entropy(StrEnum):
    """Which tokens count in an entropy."""

    TOP16 = "top16"
    FULL = "full"


@app.command()
def annotate(
    prefix: Annotated[Path, typer.Argument(help="PREFIX of the corpus.")],
    model: Annotated[Path, typer.Option(help="Hugging Face directory of the annotating model.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Megatron's fields, as key=value.")] = None,
    entropy: Annotated[
        Entropy, typer.Option(help="Of the 16 likeliest tokens, renormalised, or of all.")
    ] = Entropy.TOP16,
) -> None:
    """How uncertain a model is of each token of a corpus: PREFIX.entropy, by which difficulty is told. Resumable.

    Several ranks: torchrun --nproc-per-node 2 -m megatron_davinci rmt annotate ... tensor_model_parallel_size=2.
    Example: davinci rmt annotate corpus/omni --model Qwen3-14B-Base bf16=true
    """
    from data_prep.cli.app import report
    from megatron_davinci.recipe import parse_overrides
    from megatron_davinci.train.annotate import annotate as run

    told = run(prefix, model, entropy.value, parse_overrides(overrides or []))
    if told:
        report({"annotated": str(prefix), **told}, as_json=False)


@app.command()
def ask(
    recipe: Annotated[Path, typer.Argument(help="Recipe file (YAML) with a stage of objective rmt.")],
    out: Annotated[Path, typer.Option(help="File to write: .jsonl.zst.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as seed=7")] = None,
) -> None:
    """Prompts of a run's next step, for a sampler of your own; training then takes the rollouts from a file.

    A line for each position: the fields that a group of rollouts repeats, and the prompt's ids.
    Example: davinci rmt ask recipe.yaml --out prompts.jsonl.zst
    """
    from data_prep.cli.app import report
    from megatron_davinci.recipe import load_recipe
    from megatron_davinci.train.ask import write_prompts

    report(write_prompts(load_recipe(recipe, overrides or []), out), as_json=False)
