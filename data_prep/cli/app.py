"""The command group that all commands join, and how they report."""

from typing import Annotated, Any

import orjson
import typer

app = typer.Typer(no_args_is_help=True, help="Git histories -> samples -> tokens -> packed sequences.")
collect = typer.Typer(no_args_is_help=True, help="Collect changes from a source into records.")
app.add_typer(collect, name="collect")

AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")]


def report(summary: dict[str, Any], as_json: bool) -> None:
    """Print a summary for a person, one line per fact, or for a script."""
    if as_json:
        typer.echo(orjson.dumps(summary).decode())
        return
    for key, value in summary.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {count:,}" for name, count in value.items()) or "none"
        elif isinstance(value, float):
            value = f"{value:.4f}"
        elif isinstance(value, int):
            value = f"{value:,}"
        typer.echo(f"{key.replace('_', ' '):>18}  {value}")
