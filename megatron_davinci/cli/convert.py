"""`davinci convert`. Imports nothing heavy before a command runs."""

from pathlib import Path
from typing import Annotated, Literal

import orjson
import typer

from data_prep import InputError
from data_prep.cli.app import AsJson, local_model, local_tokenizer
from data_prep.cli.groups import command_group
from data_prep.io.errors import printable
from data_prep.io.exit_codes import resumable

app = command_group("Checkpoints between Megatron and Hugging Face.")

AsType = Annotated[
    Literal["bf16", "fp16", "fp32"] | None, typer.Option(help="Type of what is written; default: each as it is stored.")
]
AsModel = Annotated[
    str | None,
    typer.Option(
        help="Preset or Hugging Face directory that says what the model is: for a checkpoint of Megatron-LM's or "
        "Megatron-Bridge's, which does not."
    ),
]
ShardSize = Annotated[float, typer.Option(help="Largest size of a file, in 10^9 bytes.")]
Workers = Annotated[int, typer.Option(min=1, help="Files written at once; each takes 0.1 GB of memory at most.")]


def _bytes(gigabytes: float) -> int:
    if not 0.001 <= gigabytes <= 1e6:  # nor does nan
        raise InputError(f"--shard-gigabytes is {gigabytes}: it must lie between 0.001 and 1e6")
    return int(gigabytes * 1e9)


@app.command("megatron-to-hf")
@resumable
def megatron_to_hf(
    checkpoint: Annotated[
        Path, typer.Argument(help="A step_NNNNNNN or iter_NNNNNNN directory, or that of a run: its latest.")
    ],
    out: Annotated[Path, typer.Argument(help="Directory to make, in the form that transformers loads.")],
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            callback=local_tokenizer, help="Directory with the tokenizer's files, where the checkpoint has none."
        ),
    ] = None,
    model: AsModel = None,
    dtype: AsType = None,
    shard_gigabytes: ShardSize = 5.0,
    workers: Workers = 2,
) -> None:
    """Export a checkpoint for transformers, tokenizer included. Killed, it goes on where it was.

    Example: davinci convert megatron-to-hf runs/x hf --dtype bf16
    """
    from megatron_davinci.weights.conversion import ConversionOptions
    from megatron_davinci.weights.to_huggingface import export_to_hf

    export_to_hf(checkpoint, out, tokenizer, ConversionOptions(dtype, _bytes(shard_gigabytes), workers), model)
    typer.echo(f"{out}: transformers loads it; davinci convert verify {checkpoint} {out} compares the weights")


@app.command("hf-to-megatron")
@resumable
def hf_to_megatron(
    source: Annotated[
        Path, typer.Argument(callback=local_model, help="Hugging Face directory with config.json and safetensors.")
    ],
    out: Annotated[Path, typer.Argument(help="Directory to make: a torch_dist checkpoint of the weights.")],
    dtype: AsType = None,
    shard_gigabytes: ShardSize = 5.0,
    workers: Workers = 2,
) -> None:
    """Weights for Megatron in any layout. Killed, it goes on where it was.

    Example: davinci convert hf-to-megatron Qwen2.5-72B qwen-72b
    """
    from megatron_davinci.weights.conversion import ConversionOptions
    from megatron_davinci.weights.to_megatron import import_from_hf

    import_from_hf(source, out, ConversionOptions(dtype, _bytes(shard_gigabytes), workers))
    typer.echo(f"{out}: init_from of a recipe takes it, in any layout of ranks")


@app.command()
def verify(
    one: Annotated[
        Path, typer.Argument(callback=local_model, help="A checkpoint, a run's directory, or a Hugging Face directory.")
    ],
    other: Annotated[Path, typer.Argument(callback=local_model, help="Another one.")],
    model: AsModel = None,
    as_json: AsJson = False,
) -> None:
    """Whether two hold the same weights, to the last bit. Exit code 1 where they do not.

    Example: davinci convert verify Qwen2.5-7B runs/x
    """
    from megatron_davinci.weights.compare import differences

    found = differences(one, other, model)
    if as_json:
        typer.echo(orjson.dumps({"same": not found, "differences": found}).decode())
    else:
        for line in found:
            typer.echo(printable(line))
        typer.echo(f"not the same weights: {len(found)} difference(s)" if found else "the same weights")
    if found:
        raise typer.Exit(1)
