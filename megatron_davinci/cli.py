"""The `davinci` command. Imports nothing heavy before a command runs."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from data_prep import InputError
from data_prep.cli import app as data_app
from megatron_davinci.rmt.cli import app as rmt_app

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Agentic mid-training on Megatron-Core: from git histories to a Hugging Face checkpoint.",
)
app.add_typer(data_app, name="data")
app.add_typer(rmt_app, name="rmt")
AsType = Annotated[
    Literal["bf16", "fp16", "fp32"] | None, typer.Option(help="Type of what is written; default: that of the weights.")
]
ShardSize = Annotated[float, typer.Option(help="Largest size of a file, in 10^9 bytes.")]
convert = typer.Typer(no_args_is_help=True, help="Checkpoints between Megatron and Hugging Face.")
app.add_typer(convert, name="convert")


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
def train(
    recipe: Annotated[Path, typer.Argument(help="Recipe file (YAML).")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as schedule.lr=1e-5")] = None,
) -> None:
    """Train a recipe in this process; several ranks: torchrun --nproc-per-node N -m megatron_davinci.train RECIPE.

    Started again, it goes on from the latest checkpoint. Example: davinci train recipe.yaml schedule.lr=1e-5
    """
    from megatron_davinci.recipe import load_recipe

    checked = load_recipe(recipe, overrides or [])
    from megatron_davinci.train.loop import train as run

    run(checked)


@convert.command("megatron-to-hf")
def megatron_to_hf(
    checkpoint: Annotated[Path, typer.Argument(help="A step_NNNNNNN directory, or the run's directory: its latest.")],
    out: Annotated[Path, typer.Argument(help="Directory to make, in the form that transformers loads.")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="Directory with the tokenizer's files, where the checkpoint has none.")
    ] = None,
    dtype: AsType = None,
    shard_gigabytes: ShardSize = 5.0,
) -> None:
    """Export a checkpoint for transformers, tokenizer included. Killed, it goes on where it was.

    Example: davinci convert megatron-to-hf runs/x hf --dtype bf16
    """
    from megatron_davinci.checkpoint.convert import export_to_hf

    export_to_hf(checkpoint, out, tokenizer, dtype, int(shard_gigabytes * 1e9))


@convert.command("hf-to-megatron")
def hf_to_megatron(
    source: Annotated[Path, typer.Argument(help="Hugging Face directory with config.json and safetensors.")],
    out: Annotated[Path, typer.Argument(help="Directory to make: a torch_dist checkpoint of the weights.")],
    dtype: AsType = None,
    shard_gigabytes: ShardSize = 5.0,
) -> None:
    """Weights for Megatron in any layout. Killed, it goes on where it was.

    Example: davinci convert hf-to-megatron Qwen2.5-72B qwen-72b
    """
    from megatron_davinci.checkpoint.convert import import_from_hf

    import_from_hf(source, out, dtype, int(shard_gigabytes * 1e9))


@convert.command()
def verify(
    one: Annotated[Path, typer.Argument(help="A checkpoint, a run's directory, or a Hugging Face directory.")],
    other: Annotated[Path, typer.Argument(help="Another one.")],
) -> None:
    """Whether two hold the same weights, to the last bit. Exit code 1 where they do not.

    Example: davinci convert verify Qwen2.5-7B runs/x
    """
    from megatron_davinci.checkpoint.compare import differences

    found = differences(one, other)
    for line in found:
        typer.echo(line)
    if found:
        raise typer.Exit(1)
    typer.echo("the same weights")


def run_and_exit(command: typer.Typer, *arguments: str) -> None:
    """Run a command line: a user's mistake is one sentence on stderr and exit code 2."""
    with exit_on_mistake():
        command(list(arguments) or None)


@contextmanager
def exit_on_mistake() -> Iterator[None]:
    """A user's mistake in the block is one sentence on stderr and exit code 2; a full disk one and exit code 1.

    Of many ranks that find the same mistake, the first one says it.
    """
    try:
        yield
    except InputError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        print(f"error: {error.strerror}: make room, and start the same command again", file=sys.stderr)
        sys.exit(1)


def main() -> None:
    """Entry point of the console script."""
    run_and_exit(app)
