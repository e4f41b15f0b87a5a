"""Changes to records, records to training documents."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from data_prep.cli.app import (
    AsJson,
    ExecutorKind,
    ExecutorOptions,
    Tasks,
    Workers,
    app,
    collect,
    local_tokenizer,
)
from data_prep.io.errors import InputError
from data_prep.io.exit_codes import resumable
from data_prep.io.files import refuse_existing
from data_prep.io.progress import counter
from data_prep.io.summary import print_summary

DEFAULT_MAX_TOKENS = 32_768
CodeBy = Literal["git", "api"]


def _build_next(records: Path) -> str:
    """What comes after records."""
    return f"davinci data build {shlex.quote(str(records))} --tokenizer T --out samples"


@collect.command("git")
def collect_git(
    path: Annotated[Path, typer.Argument(help="A clone, bare or not; refs/pull/*/head are used where it has them.")],
    out: Annotated[Path, typer.Option(help="Directory to make: records/, rejected/, summary.json.")],
    name: Annotated[str | None, typer.Option(help="OWNER/NAME, where the clone's remote does not tell it.")] = None,
    rebased: Annotated[
        bool, typer.Option("--rebased/--no-rebased", help="Take pull requests known to have landed by their patches.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Merged pull requests of a clone, squashed and rebased ones, or plain commits where it has none.

    Each of refs/pull/*/head is counted: a record, rejected, or not landed as far as the history shows.
    Example: davinci data collect git ./pluggy --out records
    """
    from data_prep.sources.collect import collect_git

    with counter("changes", quiet=as_json) as advance:
        summary = collect_git(path, out, name=name, rebased=rebased, on_record=advance)
    print_summary({"written to": str(out), **summary}, as_json, _build_next(out))
    if "/" not in str(summary.get("repository") or "/"):
        typer.echo("note: tasks in environments want --name OWNER/NAME: the clone's remote names none", err=True)


@collect.command("source")
def collect_source(
    name: Annotated[str, typer.Argument(help="davinci-dev (its published rows), or your own: package.module:name.")],
    argument: Annotated[str, typer.Argument(help="What it reads: a path, an address.")],
    out: Annotated[Path, typer.Option(help="Directory to make: records/, summary.json.")],
    as_json: AsJson = False,
) -> None:
    """Changes of a source of your own: see docs/extending.md.

    Example: davinci data collect source my_company.gerrit:GerritSource https://review.example.com --out records
    """
    from data_prep.sources.collect import collect_changes
    from data_prep.sources.registry import SOURCES

    summary = collect_changes(SOURCES.get(name)(argument), out, origin=name)
    print_summary({"written to": str(out), **summary}, as_json, _build_next(out))


@collect.command("github")
@resumable
def github(
    out: Annotated[Path, typer.Option(help="Directory to make: records/, rejected/, summary.json.")],
    repositories: Annotated[list[str] | None, typer.Argument(help="OWNER/NAME of each repository.")] = None,
    list_file: Annotated[
        Path | None, typer.Option("--list", help="File with a repository a line; lines with # are comments.")
    ] = None,
    top_starred: Annotated[int | None, typer.Option(help="Take this many of the most starred repositories.")] = None,
    language: Annotated[str | None, typer.Option(help="With --top-starred: only of this language.")] = None,
    tokens: Annotated[
        Path | None, typer.Option(help="File with a token a line; default: GITHUB_TOKEN, tokens parted by commas.")
    ] = None,
    code: Annotated[CodeBy, typer.Option(help="How code is had: git, or api where git cannot be.")] = "git",
    api_url: Annotated[str, typer.Option(help="Another server: https://HOST/api/v3.")] = "https://api.github.com",
    tasks: Tasks = 1,
    workers: Workers = 1,
    executor: ExecutorKind = "local",
    option: ExecutorOptions = None,
    as_json: AsJson = False,
) -> None:
    """Merged pull requests of GitHub repositories: what was said by its API, code by git.

    Tokens stand in memory only. Killed, or out of its rate limit, and started again, it asks nothing twice.
    Example: davinci data collect github pytest-dev/pluggy --out records
    """
    from data_prep.io.extras import require
    from data_prep.io.progress import status
    from data_prep.pipeline.jobs import run_job

    require("githubkit")
    from data_prep.sources.github.collect import GitHubJob, remove_scratch
    from data_prep.sources.github.repositories import most_starred
    from data_prep.sources.github.tokens import read_list

    names = [*(repositories or []), *(read_list(list_file) if list_file else [])]
    if not names and top_starred is None:
        raise InputError("no repository is named: give OWNER/NAME, --list FILE or --top-starred N")
    if top_starred is not None and top_starred < 1:
        raise InputError(f"--top-starred is {top_starred}; it must be at least 1")
    refuse_existing(out)
    with status("pull requests", quiet=as_json) as (advance, say):
        job = GitHubJob(tuple(names), code, api_url, tokens and tokens.absolute())
        if tasks == 1:
            job = replace(job, on_record=advance, on_state=say)
        if top_starred is not None:
            with job.client(out) as client:
                job = replace(job, repositories=(*names, *most_starred(client, top_starred, language)))
        summary = run_job(job, out, "repositories", tasks, workers, executor, option or [], quiet=True)
    if summary is not None:
        remove_scratch(out)
    following = _build_next(out) if summary else ""
    print_summary({"written to": str(out), **(summary or {"handed in": tasks})}, as_json, following)


@collect.command("trajectories")
def trajectories(
    paths: Annotated[
        list[Path],
        typer.Argument(help="What environments run made; files of SWE-agent, mini-swe-agent; published tables."),
    ],
    out: Annotated[Path, typer.Option(help="Directory to make: conversations, rejected ones, summary.json.")],
    resolved: Annotated[
        Path | None, typer.Option(help="SWE-bench's report: rollouts that pass and that fail come apart.")
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            callback=local_tokenizer, help="Tokenizer of the length filter; without one no rollout is too long."
        ),
    ] = None,
    chat_template: Annotated[Path | None, typer.Option(help="Jinja template; default: the tokenizer's own.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest rollout, in tokens.")] = 131_072,
    keep: Annotated[
        str, typer.Option(help="Tasks by how often their rollouts resolved them: all, 2, or 1-2 (1 or 2 times).")
    ] = "all",
    leave_out: Annotated[
        list[str] | None, typer.Option(help="Rollouts with a command that reaches for: history, network.")
    ] = None,
    mask_failed_steps: Annotated[
        bool, typer.Option("--mask-failed-steps", help="Do not train replies whose tool call failed.")
    ] = False,
    as_text: Annotated[
        bool, typer.Option("--as-text", help="Calls as <function=...>, thoughts in <think>: daVinci-Dev's form.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Agents' rollouts to conversations, which davinci data tokenize --chat takes.

    Tasks of SWE-bench Verified, and of its repositories, are left out.
    Example: davinci data collect trajectories trajectories/ --resolved report.json --out rollouts
    """
    from data_prep.sources.trajectories import collect_trajectories
    from data_prep.sources.trajectory_length import TrajectoryLength
    from data_prep.sources.trajectory_rules import Kept, TrajectoryRules

    rules = TrajectoryRules(Kept.parse(keep), tuple(leave_out or ()), mask_failed_steps, as_text)
    length = TrajectoryLength(tokenizer, chat_template, max_tokens) if tokenizer else None
    summary = collect_trajectories(paths, out, resolved, length, rules)
    kind = "rollouts" if (out / "rollouts.jsonl.zst").exists() else "passing"
    texts = shlex.quote(str(out / f"{kind}.jsonl.zst"))
    following = f"davinci data tokenize {texts} --chat --tokenizer DIR --out corpus/NAME"
    print_summary({"written to": str(out), **summary}, as_json, following)


@app.command()
@resumable
def build(
    records: Annotated[Path, typer.Argument(help="What davinci data collect made.")],
    out: Annotated[Path, typer.Option(help="Directory to make: samples/, rejected/, summary.json.")],
    sample_format: Annotated[
        str,
        typer.Option(
            "--format",
            help="python, general, factorised (localization and editing apart), or your own as package.module:name.",
        ),
    ] = "python",
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            callback=local_tokenizer, help="Tokenizer of the length filter; without one no sample is too long."
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest sample, in tokens.")] = DEFAULT_MAX_TOKENS,
    keep_names: Annotated[bool, typer.Option("--keep-names", help="Do not put pseudonyms in place of people.")] = False,
    tasks: Tasks = 1,
    workers: Workers = 1,
    executor: ExecutorKind = "local",
    option: ExecutorOptions = None,
    as_json: AsJson = False,
) -> None:
    """Records to training documents; every one replays to the head it came from, byte for byte.

    Killed, and started again, it goes on where it was. Example: davinci data build records --format python
    --tokenizer qwen.tiktoken --out samples
    """
    from data_prep.corpus.length_histogram import LengthHistogram
    from data_prep.pipeline.jobs import run_job
    from data_prep.samples.build import BuildJob

    if tokenizer is None and max_tokens != DEFAULT_MAX_TOKENS:
        raise InputError(f"--max-tokens is {max_tokens}, and no --tokenizer counts tokens: give one")
    job = BuildJob(
        records.absolute(), sample_format, tokenizer and tokenizer.absolute(), max_tokens, pseudonyms=not keep_names
    )
    summary = run_job(job, out, "shards", tasks, workers, executor, option or [], quiet=as_json)
    if summary is None or as_json:
        print_summary({"written to": str(out), **(summary or {"handed in": tasks})}, as_json)
        return
    collected, lengths = summary.pop("collected"), summary.pop("lengths")
    counts = {k: v for k, v in collected.items() if isinstance(v, int | float)}
    following = f"davinci data tokenize {shlex.quote(str(out))} --tokenizer T --append-eod --out corpus/NAME"
    print_summary({"written to": str(out), **summary, "collected": counts}, following=following)
    if lengths:
        typer.echo(LengthHistogram.of_rows(lengths).as_text())
    if not summary["samples"] and sample_format == "python" and summary["rejected"].get("no_python_file"):
        typer.echo("note: no change touches Python; --format general takes every language", err=True)


@app.command()
@resumable
def enhance(
    records: Annotated[Path, typer.Argument(help="What davinci data collect made.")],
    server: Annotated[str, typer.Option(help="An OpenAI-compatible server: http://HOST:PORT/v1.")],
    model: Annotated[str, typer.Option(help="Name of the model, as the server knows it.")],
    out: Annotated[Path, typer.Option(help="Directory to make: records/ with what the model wrote, summary.json.")],
    concurrency: Annotated[int, typer.Option(help="Requests at a time.")] = 8,
    tasks: Tasks = 1,
    workers: Workers = 1,
    executor: ExecutorKind = "local",
    option: ExecutorOptions = None,
    as_json: AsJson = False,
) -> None:
    """Let a language model write a summary of each change, and fuller messages for terse commits.

    The key of the server is OPENAI_API_KEY. Killed, and started again, it asks nothing twice.
    Example: davinci data enhance records --server http://127.0.0.1:8000/v1 --model Qwen3 --out enhanced
    """
    from data_prep.io.extras import require
    from data_prep.pipeline.jobs import run_job

    require("openai")
    from data_prep.samples.enhance import EnhanceJob, remove_answers

    job = EnhanceJob(records.absolute(), server, model, concurrency)
    summary = run_job(job, out, "shards", tasks, workers, executor, option or [], quiet=as_json)
    if summary is not None:
        remove_answers(out)
    following = _build_next(out) if summary else ""
    print_summary({"written to": str(out), **(summary or {"handed in": tasks})}, as_json, following)
