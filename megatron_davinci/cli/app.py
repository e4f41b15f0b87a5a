"""The `davinci` command. Imports nothing heavy before a command runs."""

import gc
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import orjson
import typer

from data_prep import InputError
from data_prep.cli import app as data_app
from data_prep.cli.groups import command_group
from data_prep.io.exit_codes import INTERRUPTED, exit_on_interrupt, exit_on_mistake, print_any_text, resumable
from megatron_davinci import __version__
from megatron_davinci.cli.bench import app as bench_app
from megatron_davinci.cli.convert import app as convert_app
from megatron_davinci.cli.doctor import doctor
from megatron_davinci.cli.evaluate import app as eval_app
from megatron_davinci.cli.examples import app as examples_app
from megatron_davinci.cli.launch import launch
from megatron_davinci.cli.plan import plan
from megatron_davinci.cli.report import report
from megatron_davinci.cli.rmt import app as rmt_app
from megatron_davinci.cli.rollout import app as rollout_app
from megatron_davinci.cli.serve import sample, serve

app = command_group(
    "Agentic mid-training on Megatron-Core: from git histories to a Hugging Face checkpoint.",
    "demo data train launch plan rmt rollout convert serve sample eval report bench examples doctor",
)
app.add_typer(data_app, name="data")
app.add_typer(rmt_app, name="rmt")
app.add_typer(convert_app, name="convert")
app.add_typer(eval_app, name="eval")
app.add_typer(bench_app, name="bench")
app.add_typer(rollout_app, name="rollout")
app.add_typer(examples_app, name="examples")


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"davinci {__version__}")
        raise typer.Exit


@app.callback()
def davinci(
    _version: Annotated[
        bool,
        typer.Option("--version", help="Say which version this is, and stop.", callback=_say_version, is_eager=True),
    ] = False,
) -> None:
    """Agentic mid-training on Megatron-Core: from git histories to a Hugging Face checkpoint."""


@app.command()
def demo(
    repo: Annotated[Path | None, typer.Option(help="A git clone to mine; default: the current directory.")] = None,
    out: Annotated[Path, typer.Option(help="Directory to make for everything that comes out.")] = Path("out/demo"),
) -> None:
    """The whole way on this machine: git history -> samples -> tokens -> training on 2 ranks -> Hugging Face.

    Example: davinci demo --repo ./pluggy --out out/pluggy
    """
    from megatron_davinci.demo.run import run_demo

    run_demo(repo, out)


@app.command()
@resumable
def train(
    recipe: Annotated[Path, typer.Argument(help="Recipe file (YAML).")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as schedule.lr=1e-5")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, say what would run, and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: for a script.")] = False,
) -> None:
    """Train a recipe in this process; several ranks: torchrun --nproc-per-node N -m megatron_davinci train RECIPE.

    Started again, it goes on from the latest checkpoint. Example: davinci train recipe.yaml schedule.lr=1e-5
    """
    from megatron_davinci.config import load_recipe
    from megatron_davinci.launch.ranks import adopt_slurm_ranks

    if as_json and not dry_run:
        raise InputError("--json goes with --dry-run: add it, or leave --json out")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # it waits until there is a step to save
    adopt_slurm_ranks()
    checked = load_recipe(recipe, overrides or [], with_weights=not dry_run)
    if dry_run:
        from megatron_davinci.train.dry_run import as_text, describe_run

        facts = describe_run(checked)
        typer.echo(orjson.dumps(facts).decode() if as_json else as_text(facts))
        return
    if sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":
        typer.echo("loading torch and Megatron-Core: a few seconds", err=True)
    gc.disable()  # it would take a fifth of the time that importing Megatron takes
    from megatron_davinci.train.loop import train as run

    gc.freeze()  # nor does what is imported ever go
    gc.enable()
    if run(checked) == signal.SIGINT:
        raise typer.Exit(INTERRUPTED)


app.command()(launch)
app.command()(plan)
app.command(context_settings={"allow_extra_args": True})(serve)
app.command()(sample)
app.command()(report)
app.command()(doctor)


def run_and_exit(command: typer.Typer, *arguments: str) -> None:
    """Run a command line: a user's mistake is one sentence on stderr and exit code 2."""
    print_any_text()
    with exit_on_interrupt(), exit_on_mistake():
        command(list(arguments) or None)


def main() -> None:
    """Entry point of the console script."""
    run_and_exit(app)
