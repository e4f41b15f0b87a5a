"""`davinci examples`: the recipes that come with the package."""

from pathlib import Path
from typing import Annotated

import typer

from data_prep.cli.app import AsJson
from data_prep.cli.groups import command_group

app = command_group("Ready recipes, to copy and change.")


@app.command("list")
def list_examples(as_json: AsJson = False) -> None:
    """Every example with the first line of its recipe. Example: davinci examples list"""
    import orjson

    from megatron_davinci.config.examples import describe_examples

    found = describe_examples()
    if as_json:
        typer.echo(orjson.dumps(found).decode())
        return
    for name, line in found.items():
        typer.echo(f"{name}\n    {line}")


@app.command("copy")
def copy_example(
    name: Annotated[str, typer.Argument(help="One of davinci examples list.")],
    out: Annotated[Path | None, typer.Argument(help="Directory to make; default: the example's name.")] = None,
) -> None:
    """Copy an example's files into a directory of yours. Example: davinci examples copy davinci-7b my-run"""
    from megatron_davinci.config.examples import copy_files

    target = copy_files(name, out or Path(name))
    recipe = target / "recipe.yaml"
    typer.echo(f"{target}: " + ", ".join(sorted(path.name for path in target.iterdir())))
    if recipe.exists():
        typer.echo(f"next: davinci train {recipe} --dry-run")
