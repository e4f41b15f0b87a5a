"""`davinci launch`. Imports nothing heavy before the command runs."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from data_prep import InputError


def launch(
    recipe: Annotated[Path, typer.Argument(help="Recipe file (YAML).")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as schedule.lr=1e-5")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of the job.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="Ranks on each node, one a GPU.")] = 8,
    gpu: Annotated[
        str | None, typer.Option(help="What the job runs on, for a plan of its memory: h100, h200, b200 or a100.")
    ] = None,
    gpu_memory: Annotated[
        float | None,
        typer.Option(min=1, help="GiB of a GPU, where it is another; default: of --gpu, or of this machine's."),
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Ranks are CPU processes: ask Slurm for no GPUs.")] = False,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="Hand the job to Slurm instead of running torchrun here.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the script, and stop.")] = False,
    time: Annotated[str, typer.Option(help="Slurm: limit of a job.")] = "24:00:00",
    partition: Annotated[str | None, typer.Option(help="Slurm: partition.")] = None,
    account: Annotated[str | None, typer.Option(help="Slurm: account.")] = None,
    container: Annotated[
        str | None, typer.Option(help="Slurm with pyxis: image in which ranks run, with this directory.")
    ] = None,
    mount: Annotated[
        list[str] | None, typer.Option(help="Slurm with pyxis: another directory for the container, as of weights.")
    ] = None,
    warning: Annotated[int, typer.Option(min=30, help="Slurm: seconds before the limit at which a run saves.")] = 600,
    chain: Annotated[
        int, typer.Option(min=1, help="Slurm: number of jobs in a chain, where a job must not requeue itself.")
    ] = 1,
    sbatch: Annotated[list[str] | None, typer.Option(help="Slurm: another option, as --sbatch=--qos=high.")] = None,
    rollout_nodes: Annotated[
        int,
        typer.Option(min=0, help="Slurm: number of further nodes, each with a rollout server (vllm)."),
    ] = 0,
    max_restarts: Annotated[int, typer.Option(min=0, help="torchrun: how often failed ranks are started again.")] = 3,
    port: Annotated[int, typer.Option(min=1, max=65535, help="torchrun on several nodes: where ranks meet.")] = 29500,
    python: Annotated[
        str | None, typer.Option(help="Interpreter on the nodes: this one, or a container's python.")
    ] = None,
) -> None:
    """Run a recipe on nodes: torchrun here, or a job of Slurm's that saves before its limit and goes on by itself.

    Stages with another layout begin in fresh processes, under Slurm when the job is started again.
    Example: davinci launch recipe.yaml --nodes 32 --gpus-per-node 8 --slurm --partition h100
    """
    from megatron_davinci.config import load_recipe
    from megatron_davinci.launch.fit import check_ranks, check_rollout_nodes
    from megatron_davinci.launch.gpu_memory import keep_or_drop_plan, plan_memory, visible_gpu_gibibytes
    from megatron_davinci.launch.script import Job, local_script
    from megatron_davinci.launch.slurm import Slurm, slurm_script
    from megatron_davinci.launch.start import run_locally, submit

    known = load_recipe(recipe, overrides or [], with_weights=not dry_run)
    check_ranks(known, nodes, gpus_per_node)
    if not cpu:
        plan_memory(known, nodes * gpus_per_node, gpu, gpu_memory, here=not slurm)
    job = Job(
        recipe=recipe,
        overrides=overrides or [],
        run=known.checkpoint.dir,
        nodes=nodes,
        per_node=gpus_per_node,
        gpus=not cpu,
        python=python or (shlex.quote(sys.executable) if container is None else "python"),
        restarts=max_restarts,
        port=port,
    )
    options = Slurm(time, partition, account, container, mount or (), warning, chain, rollout_nodes, sbatch or ())
    check_rollout_nodes(known, rollout_nodes, slurm)
    if mount and container is None:
        raise InputError("--mount is for a container: name its image with --container, or leave it out")
    if not slurm and any((partition, account, container, sbatch)):
        raise InputError("an option of Slurm's is given without --slurm: add it, or leave the option out")
    if dry_run:
        typer.echo(slurm_script(job, options) if slurm else local_script(job), nl=False)
        return
    if not slurm and not cpu and visible_gpu_gibibytes() is None:
        typer.echo("warning: this machine shows no GPU: ranks run on its CPU, which --cpu says too", err=True)
    keep_or_drop_plan(known, nodes * gpus_per_node, None if cpu else gpu)
    if slurm:
        jobs = submit(job, options)
        typer.echo(f"submitted {', '.join(jobs)}: slurm-*-JOB.log in this directory will tell")
    else:
        run_locally(job)
