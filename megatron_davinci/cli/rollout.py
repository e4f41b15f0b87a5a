"""`davinci rollout ...`: servers that answer prompts. Imports nothing heavy before a command runs."""

from pathlib import Path
from typing import Annotated

import typer

from data_prep.cli.groups import command_group
from data_prep.io.exit_codes import resumable

app = command_group("Servers that answer prompts in reinforcement.")


@app.command()
@resumable
def setup(
    directory: Annotated[Path, typer.Argument(help="Directory to make.")] = Path(".venv-vllm"),
    python: Annotated[str | None, typer.Option(help="Interpreter to make it with; default: this one.")] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="vLLM's build for NVIDIA GPUs; not yet run.")] = False,
) -> None:
    """Make vLLM's own environment, with pinned packages: it wants others than training does. 1.4 GB.

    Started again, it completes what is there. Example: davinci rollout setup .venv-vllm
    """
    from megatron_davinci.serve.environment import set_up

    made = set_up(directory, python, gpu)
    typer.echo(f"{made.directory} has vLLM {made.version}: objective.rollouts.environment of a recipe names it")


@app.command()
def serve(
    recipe: Annotated[Path, typer.Argument(help="Recipe whose objective.rollouts.engine is vllm.")],
    out: Annotated[Path, typer.Option(help="File for address and token, in the recipe's objective.rollouts.servers.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value")] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on, of a private network; default: this node's.")
    ] = None,
    stage: Annotated[str | None, typer.Option(help="Stage; default: the first that vLLM answers.")] = None,
) -> None:
    """A server for a run on other nodes: it waits for weights, answers that run alone, and ends with this command.

    Example: davinci rollout serve recipe.yaml --out runs/rmt/servers/0.json
    """
    from megatron_davinci.config import load_recipe
    from megatron_davinci.launch.rollout_server import serve_rollouts

    serve_rollouts(load_recipe(recipe, overrides or [], with_weights=False), stage, out, host)
