"""`davinci plan`. Imports nothing heavy before the command runs."""

from pathlib import Path
from typing import Annotated

import typer

from data_prep import InputError
from data_prep.cli.app import AsJson

Lengths = Annotated[
    list[str] | None,
    typer.Option(help="Lengths of documents: a corpus's PREFIX, or a file of lines 'LENGTH' or 'LENGTH COUNT'; "
                      "STAGE=FILE for one stage; repeatable. Without: those of the recipe's corpora, or a guess."),
]  # fmt: skip


def plan(
    recipe: Annotated[str, typer.Argument(help="Recipe file (YAML), or a model: a preset, or its directory.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as data.seq_length=131072")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of the job.")] = 8,
    gpu: Annotated[
        str, typer.Option(help="h100, h200, b200 or a100; or a file of davinci bench train --calibrate.")
    ] = "h100",
    lengths: Lengths = None,
    top: Annotated[int, typer.Option(min=1, max=100, help="So many layouts are shown.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Predict memory, seconds a step, MFU and days of a recipe, and find the layouts that are fastest and fit.

    No corpora, weights or GPUs are needed. Example: davinci plan recipe.yaml --gpus 512 --gpu h100
    """
    import orjson

    from megatron_davinci.plan.describe import make_plan, plan_text, recipe_or_model
    from megatron_davinci.plan.devices import find_device

    known = recipe_or_model(recipe, overrides or [])
    by_stage = dict[str | None, str]()
    for each in lengths or []:
        stage, equals, path = each.partition("=")
        name, path = (stage, path) if equals and not Path(each).is_file() else (None, each)
        if name in by_stage:
            raise InputError(
                f"--lengths names {'all stages' if name is None else f'stage {name}'} twice: leave one out"
            )
        by_stage[name] = path
    found = make_plan(known, gpus, find_device(gpu), by_stage, top)
    typer.echo(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode() if as_json else plan_text(found))
