"""The command group that all commands join, and how they report."""

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
import typer

from data_prep.io.errors import InputError

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


def report(summary: dict[str, Any], as_json: bool) -> None:
    """Print a summary for a person, one line per fact, or for a script."""
    if as_json:
        typer.echo(orjson.dumps(summary).decode())
        return
    for key, value in summary.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {_said(count)}" for name, count in value.items()) or "none"
        typer.echo(f"{key.replace('_', ' '):>18}  {_said(value)}")


def _said(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def require(package: str) -> None:
    """Raise InputError where a package of the extra `collect` cannot be imported."""
    try:
        import_module(package)
    except ImportError as error:
        raise InputError(f"this needs {package} ({error}): pip install 'megatron-davinci[collect]'") from None


def run_job(
    job: Any, out: Path, what: str, tasks: int, workers: int, executor: Executor, option: list[str] | None, quiet: bool
) -> dict[str, Any] | None:
    """Do a job in shards, here or as tasks; its summary, or None where tasks have only been handed in."""
    from data_prep.io.files import read_json
    from data_prep.io.progress import counter
    from data_prep.io.shards import run_in_process

    if executor == "local" and tasks == 1:
        with counter(what, quiet=quiet) as advance:
            return run_in_process(job, out, advance)
    from data_prep.pipeline.run import run_sharded, start

    options = dict(text.partition("=")[::2] for text in option or [])
    start(run_sharded(job, out, tasks, workers, executor, **options))
    if executor == "slurm":
        return None
    summary: dict[str, Any] = read_json(out / "summary.json")
    return summary
