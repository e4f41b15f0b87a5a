"""The command group that all commands join, and the options that several have."""

from typing import Annotated, Literal

import typer

app = typer.Typer(no_args_is_help=True, help="Git histories -> samples -> tokens -> packed sequences.")
collect = typer.Typer(no_args_is_help=True, help="Collect changes from a source into records.")
app.add_typer(collect, name="collect")

Executor = Literal["local", "slurm", "ray"]
Tasks = Annotated[int, typer.Option(help="Tasks that share the shards.")]
Workers = Annotated[int, typer.Option(help="Tasks at a time.")]
ExecutorKind = Annotated[Executor, typer.Option("--executor", help="Where tasks run: local, slurm or ray.")]
ExecutorOptions = Annotated[
    list[str] | None,
    typer.Option("--option", help="name=value for datatrove's executor: partition=cpu, time=04:00:00 ..."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")]
