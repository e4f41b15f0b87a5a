"""`davinci serve` and `davinci sample`. Imports nothing heavy before a command runs."""

from pathlib import Path
from typing import Annotated

import typer

from data_prep import InputError
from data_prep.cli.app import local_model


def serve(
    checkpoint: Annotated[Path, typer.Argument(help="Hugging Face directory, a checkpoint, or a run's directory.")],
    context: typer.Context,
    environment: Annotated[Path, typer.Option(help="vLLM's own, of davinci rollout setup.")] = Path(".venv-vllm"),
    host: Annotated[str, typer.Option(help="Address to listen on; another than this wants a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: one that is free.")] = 8000,
    name: Annotated[str | None, typer.Option(help="The model's name to askers; default: the directory's.")] = None,
    max_model_len: Annotated[
        int | None, typer.Option(min=1, help="Prompt and answer; default: the model's own, on a CPU at most 8192.")
    ] = None,
    tool_call_parser: Annotated[
        str | None, typer.Option(help="vLLM's parser of tool calls; default: by the chat template.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto: as the weights are; float32, bfloat16.")] = "auto",
    api_key_file: Annotated[Path | None, typer.Option(help="File with the key that askers must bear.")] = None,
) -> None:
    """Serve a model by OpenAI's protocol, with its chat template and tool calls, on vLLM. Ctrl-C ends it.

    Arguments behind -- go to vLLM. Example: davinci serve runs/rmt --port 8000 -- --max-num-seqs=64
    """
    from megatron_davinci.serve.chat_server import ChatOptions, serve_until_stopped, vllm_arguments

    local = Path(_local(str(checkpoint)))
    name = name or (checkpoint.name if local != checkpoint else None)
    options = ChatOptions(
        str(environment), host, port, name, max_model_len, tool_call_parser, dtype, api_key_file,
        vllm_arguments(context.args),
    )  # fmt: skip
    serve_until_stopped(local, options)


def sample(
    model: Annotated[str, typer.Argument(help="Address that ends in /v1, or what davinci serve takes.")],
    prompt: Annotated[str, typer.Argument(help="Text to go on from.")],
    chat: Annotated[bool, typer.Option("--chat", help="The prompt is a message, by the chat template.")] = False,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the likeliest token.")] = 0.0,
    environment: Annotated[Path, typer.Option(help="vLLM's own, of davinci rollout setup.")] = Path(".venv-vllm"),
) -> None:
    """What a model says after a prompt. A checkpoint is served meanwhile, which takes half a minute.

    Example: davinci sample runs/rmt "def add(a, b):"
    """
    from megatron_davinci.serve.chat_server import ChatOptions, sample_from

    options = ChatOptions(str(environment), port=0)
    typer.echo(sample_from(str(_local(model)), options, prompt, chat, max_tokens, temperature))


def _local(model: str) -> Path | str:
    """Where a model's files lie here: an address stays. Raises InputError before anything is started."""
    if model.startswith(("http://", "https://")):
        return model
    found = local_model(Path(model))
    if found is None or not found.exists():
        raise InputError(f"{model} does not exist: give a Hugging Face directory or name, a checkpoint, or a run")
    return found
