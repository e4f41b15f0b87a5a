"""`davinci eval ...`. Imports nothing heavy before a command runs."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="What a model has learnt.")


@app.callback()
def _evaluate() -> None:
    """What a model has learnt."""


@app.command("next-token")
def next_token(
    recipe: Annotated[Path, typer.Argument(help="Recipe with objective rmt: template, difficulty, reward, layout.")],
    corpus: Annotated[Path, typer.Option(help="PREFIX of a held-out corpus, annotated (davinci rmt annotate).")],
    model: Annotated[
        list[str],
        typer.Option(help="NAME=DIRECTORY, or NAME=ADDRESS of davinci serve; repeatable."),
    ],
    out: Annotated[Path, typer.Option(help="Directory to make.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as objective.max_tokens=512")] = None,
    positions: Annotated[int, typer.Option(min=1, help="Of each difficulty.")] = 200,
    budget: Annotated[int | None, typer.Option(min=1, help="B in the prompts; default: the recipe's last.")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the likeliest token.")] = 0.0,
    documents: Annotated[int, typer.Option(min=1, help="In a batch, whose time is measured.")] = 16,
) -> None:
    """Next-token accuracy by difficulty, direct and after reasoning, with counts and intervals: Tables 1, 3 and 4.

    All models answer the same positions. OUT has tables.md, results.json, and each model's responses. Several ranks:
    torchrun --nproc-per-node 2 -m megatron_davinci eval next-token ...
    Example: davinci eval next-token rmt.yaml --corpus held-out --model base=Qwen3-14B --model rmt=runs/rmt --out eval
    """
    from megatron_davinci.config import load_recipe
    from megatron_davinci.evaluate.next_token import Plan, evaluate, named_models

    plan = Plan(corpus, positions, budget, temperature, documents)
    tables = evaluate(load_recipe(recipe, overrides or []), named_models(model), plan, out)
    if tables:
        typer.echo(tables)


@app.command("checkpoints")
def checkpoints(
    recipe: Annotated[Path, typer.Argument(help="Recipe of a run that held documents out.")],
    out: Annotated[Path, typer.Option(help="Directory to make: results.json, table.md, curves.png.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value")] = None,
    stage: Annotated[str | None, typer.Option(help="Whose corpora and layout; default: the last stage's.")] = None,
    scores: Annotated[
        Path | None, typer.Option(help='Scores measured elsewhere, to be fitted too: {"pass@1": {"200": 0.31, ...}}.')
    ] = None,
) -> None:
    """Held-out loss of each source at every checkpoint that a run has kept, with a log-linear fit over steps.

    Several ranks: torchrun --nproc-per-node 2 -m megatron_davinci eval checkpoints ...
    Example: davinci eval checkpoints recipe.yaml --out curves
    """
    from megatron_davinci.config import load_recipe
    from megatron_davinci.evaluate.checkpoints import evaluate_checkpoints
    from megatron_davinci.evaluate.curves import read_scores

    known = {} if scores is None else read_scores(scores)
    table = evaluate_checkpoints(load_recipe(recipe, overrides or []), stage, known, out)
    if table:
        typer.echo(table)
