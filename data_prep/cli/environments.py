"""`davinci data environments ...`: tasks in environments where tests run."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from data_prep.cli.agent_options import (
    MaxTokens,
    ModelName,
    Patience,
    Profile,
    ReplySeconds,
    ReplyTokens,
    RequestFields,
    Seconds,
    Server,
    Steps,
)
from data_prep.cli.app import AsJson, ExecutorKind, ExecutorOptions, Tasks, Workers, app
from data_prep.cli.groups import command_group
from data_prep.io.errors import InputError, escaped, printable
from data_prep.io.exit_codes import resumable
from data_prep.io.summary import print_summary

environments = command_group(
    "Tasks from merged pull requests, in environments that run.",
    "build import inspect verify run judge export",
)
app.add_typer(environments, name="environments")

Sandbox = Annotated[str, typer.Option("--sandbox", help="Where strangers' code runs: bubblewrap, podman or docker.")]
Without = Annotated[
    list[str] | None,
    typer.Option(help="A protection that this machine may lack: 'memory limit', 'pids limit' ..."),
]


@environments.command("build")
@resumable
def build_environments(
    records: Annotated[Path, typer.Argument(help="What davinci data collect made.")],
    clone: Annotated[list[Path], typer.Option(help="A clone of each repository: NAME.git or OWNER__NAME.git.")],
    out: Annotated[Path, typer.Option(help="Directory to make: tasks/, environments/, rejected.jsonl, summary.json.")],
    runs: Annotated[int, typer.Option(help="Runs of the tests before the change, and as many after it.")] = 2,
    recipes: Annotated[
        list[Path] | None,
        typer.Option(help="Tasks built before: the recipe of the nearest earlier one of a repository is tried first."),
    ] = None,
    server: Annotated[
        str | None, typer.Option(help="Address of a model that proposes recipes where heuristics fail: http://HOST/v1.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Its name, with --server.")] = None,
    sandbox: Sandbox = "bubblewrap",
    without: Without = None,
    tasks: Tasks = 1,
    workers: Workers = 1,
    executor: ExecutorKind = "local",
    option: ExecutorOptions = None,
    as_json: AsJson = False,
) -> None:
    """Merged pull requests to tasks: a checkout, an environment as of its date, tests that fail before and pass after.

    Example: davinci data environments build records --clone pluggy.git --out envs
    """
    from data_prep.environments.build import BuildEnvironmentsJob
    from data_prep.environments.proposals import RecipeModel
    from data_prep.io.extras import require
    from data_prep.io.files import refuse_existing
    from data_prep.pipeline.jobs import run_job

    refuse_existing(out)
    if (server is None) != (model is None):
        raise InputError("--server and --model go together: give both, or neither")
    if server is not None:
        require("openai")
    asked = RecipeModel(server, model) if server is not None and model is not None else None
    given, known = tuple(without or ()), tuple(recipes or ())
    job = BuildEnvironmentsJob(tuple(clone), None, sandbox, runs, given, records, known, asked)
    summary = run_job(job, out, "candidates", tasks, workers, executor, option or [], quiet=as_json)
    print_summary(summary or {"handed in": tasks}, as_json)


@environments.command("import")
@resumable
def import_environments(
    files: Annotated[
        list[Path], typer.Argument(help="SWE-bench, SWE-rebench, SWE-bench-Live, OpenSWE: Parquet, JSONL.")
    ],
    out: Annotated[Path, typer.Option(help="Directory to make, as build makes it.")],
    clone: Annotated[
        list[Path] | None, typer.Option(help="A clone of a repository: NAME.git or OWNER__NAME.git.")
    ] = None,
    trees: Annotated[Path | None, typer.Option(help="Directory of base trees: INSTANCE.tar.xz.")] = None,
    instance: Annotated[list[str] | None, typer.Option(help="A row to take; default: all.")] = None,
    runs: Annotated[int, typer.Option(help="Runs of the tests before the change, and as many after it.")] = 2,
    sandbox: Sandbox = "bubblewrap",
    without: Without = None,
    tasks: Tasks = 1,
    workers: Workers = 1,
    executor: ExecutorKind = "local",
    option: ExecutorOptions = None,
    as_json: AsJson = False,
) -> None:
    """Tasks of SWE-bench, SWE-rebench, SWE-bench-Live, OpenSWE to tasks that run here; a reason for each left out.

    Example: davinci data environments import SWE-bench_Verified.parquet --trees trees --out verified
    """
    from data_prep.environments.build import ImportEnvironmentsJob
    from data_prep.io.files import refuse_existing
    from data_prep.pipeline.jobs import run_job

    refuse_existing(out)
    names, given = tuple(instance or ()), tuple(without or ())
    job = ImportEnvironmentsJob(tuple(clone or ()), trees, sandbox, runs, given, tuple(files), names)
    summary = run_job(job, out, "candidates", tasks, workers, executor, option or [], quiet=as_json)
    print_summary(summary or {"handed in": tasks}, as_json)


@environments.command("run")
@resumable
def run_rollouts(
    envs: Annotated[Path, typer.Argument(help="What davinci data environments build or import made.")],
    server: Server,
    model: ModelName,
    out: Annotated[Path, typer.Option(help="Directory to make: trajectories/, predictions/, tasks.jsonl.")],
    profile: Profile = "davinci-dev",
    rollouts: Annotated[int | None, typer.Option(help="Of each task; 4.")] = None,
    steps: Steps = None,
    max_tokens: MaxTokens = None,
    temperature: Annotated[float | None, typer.Option(help="0: the likeliest token; 1.")] = None,
    reply_tokens: ReplyTokens = 16_384,
    request: RequestFields = None,
    task: Annotated[list[str] | None, typer.Option(help="A task to work on; default: all.")] = None,
    seconds: Seconds = 3600,
    command_seconds: Annotated[float, typer.Option(help="Most seconds of a command.")] = 60,
    concurrency: Annotated[int, typer.Option(help="Rollouts at a time in each process.")] = 4,
    patience: Patience = 600,
    reply_seconds: ReplySeconds = 1800,
    sandbox: Sandbox = "bubblewrap",
    without: Without = None,
    tasks: Tasks = 1,
    workers: Workers = 1,
    executor: ExecutorKind = "local",
    option: ExecutorOptions = None,
    as_json: AsJson = False,
) -> None:
    """A model works on tasks with the tools bash, str_replace_editor and submit; each result is judged.

    Killed, and started again, it goes on where it was. davinci data collect trajectories makes conversations of it.
    Example: davinci data environments run envs --server http://127.0.0.1:8000/v1 --model M --out rollouts
    """
    from data_prep.agents.chat_model import ModelSettings
    from data_prep.agents.loop import AgentLimits
    from data_prep.agents.profiles import SAMPLING_PROFILES, find_profile
    from data_prep.agents.request_fields import request_fields
    from data_prep.agents.rollouts import RolloutsJob
    from data_prep.agents.working import COMMAND_LIMITS
    from data_prep.io.files import refuse_existing
    from data_prep.pipeline.jobs import run_job

    refuse_existing(out)
    chosen = find_profile(SAMPLING_PROFILES, profile).changed(rollouts, steps, max_tokens, temperature)
    job = RolloutsJob(
        envs,
        server,
        ModelSettings(model, chosen.temperature, reply_tokens, request_fields(request or ())),
        chosen.rollouts,
        AgentLimits(chosen.steps, chosen.context_tokens, seconds),
        tuple(task or ()),
        concurrency,
        patience,
        reply_seconds,
        sandbox,
        tuple(without or ()),
        replace(COMMAND_LIMITS, seconds=command_seconds),
    )
    summary = run_job(job, out, "rollouts", tasks, workers, executor, option or [], quiet=as_json)
    following = f"davinci data collect trajectories {shlex.quote(str(out))} --tokenizer DIR --out conversations"
    print_summary(summary or {"handed in": tasks}, as_json, following if summary else "")


@environments.command("judge")
@resumable
def judge(
    envs: Annotated[Path, typer.Argument(help="What davinci data environments build or import made.")],
    predictions: Annotated[Path, typer.Option(help="SWE-bench's predictions: .jsonl, or .json.")],
    report: Annotated[Path, typer.Option(help="Report to write, in SWE-bench's format, with every verdict.")],
    network: Annotated[
        Literal["black hole", "none"], typer.Option(help="black hole: no answer ever comes; none: refused at once.")
    ] = "black hole",
    sandbox: Sandbox = "bubblewrap",
    without: Without = None,
    workers: Annotated[int, typer.Option(help="Predictions at a time.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Judge patches by tests that they cannot touch. Killed, and started again, it goes on.

    Example: davinci data environments judge envs --predictions preds.jsonl --report report.json
    """
    from data_prep.environments.judging import judge_predictions
    from data_prep.io.progress import counter

    with counter("predictions", quiet=as_json) as advance:
        counts = judge_predictions(
            envs, predictions, report, sandbox, network, without or (), workers, on_verdict=advance
        )
    print_summary({"report": str(report), **counts}, as_json)


@environments.command("verify")
def verify(
    envs: Annotated[Path, typer.Argument(help="What davinci data environments build or import made.")],
    report: Annotated[Path, typer.Option(help="Report to write, as JSON.")],
    task: Annotated[list[str] | None, typer.Option(help="A task to verify; default: all.")] = None,
    condition: Annotated[
        list[str] | None,
        typer.Option(help="as built, a year ahead, a year behind, under load, without network; default: all."),
    ] = None,
    sandbox: Sandbox = "bubblewrap",
    without: Without = None,
    as_json: AsJson = False,
) -> None:
    """Gold patches resolve and empty ones do not, in other conditions too; exit code 1 where a task does not hold.

    Example: davinci data environments verify envs --report verified.json
    """
    from data_prep.environments.verify import verify_tasks
    from data_prep.io.progress import counter

    with counter("tasks", quiet=as_json) as advance:
        found = verify_tasks(envs, report, task or (), condition or (), sandbox, without or (), on_task=advance)
    print_summary(
        {"report": str(report), "checked": found["checked"], "do not hold": len(found["invalid_ids"])}, as_json
    )
    if not as_json:
        for fault in found["faults"]:
            typer.echo(printable(f"{fault['instance_id']}, {fault['condition']}: {fault['fault']}"))
    if found["faults"]:
        raise typer.Exit(1)


@environments.command("export")
def export(
    envs: Annotated[Path, typer.Argument(help="What davinci data environments build or import made.")],
    out: Annotated[Path, typer.Option(help="File to write: JSON Lines, a task each, with SWE-bench's fields.")],
    lists_as_text: Annotated[
        bool, typer.Option("--lists-as-text", help="FAIL_TO_PASS and PASS_TO_PASS as JSON text, as SWE-bench has them.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Tasks as others read them. Example: davinci data environments export envs --out tasks.jsonl"""
    from data_prep.environments.export import export_tasks

    print_summary({"file": str(out), "tasks": export_tasks(envs, out, lists_as_text)}, as_json)


@environments.command("inspect")
def inspect(
    envs: Annotated[Path, typer.Argument(help="What davinci data environments build or import made.")],
    task: Annotated[str | None, typer.Option(help="A task to show as a whole; default: a line for each.")] = None,
) -> None:
    """Tasks, and what was left out and why. Example: davinci data environments inspect envs --task a__b-1"""
    from data_prep.environments.show import show_collection, show_task

    lines = show_collection(envs) if task is None else show_task(envs, task)
    for line in lines:
        typer.echo(escaped(line))
