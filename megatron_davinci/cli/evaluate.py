"""`davinci eval ...`. Imports nothing heavy before a command runs."""

from pathlib import Path
from typing import Annotated

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
from data_prep.cli.app import AsJson, plain_prefix
from data_prep.cli.groups import command_group
from data_prep.io.exit_codes import resumable

app = command_group("What a model has learnt.")


@app.callback()
def _evaluate() -> None:
    """What a model has learnt."""


@app.command("next-token")
def next_token(
    recipe: Annotated[Path, typer.Argument(help="Recipe with objective rmt: template, difficulty, reward, layout.")],
    corpus: Annotated[
        Path, typer.Option(callback=plain_prefix, help="PREFIX of a held-out corpus, annotated (rmt annotate).")
    ],
    model: Annotated[
        list[str],
        typer.Option(help="NAME=DIRECTORY, or NAME=ADDRESS of davinci serve; repeatable."),
    ],
    out: Annotated[Path, typer.Option(help="Directory to make.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as objective.max_tokens=512")] = None,
    positions: Annotated[int, typer.Option(min=1, help="Of each difficulty.")] = 200,
    budget: Annotated[int | None, typer.Option(min=1, help="B in the prompts; default: the recipe's last.")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the likeliest token.")] = 0.0,
    documents: Annotated[int, typer.Option(min=1, help="In a batch, whose time is measured.")] = 16,
) -> None:
    """Next-token accuracy by difficulty, direct and after reasoning, with counts and intervals: Tables 1, 3 and 4.

    All models answer the same positions. OUT has tables.md, results.json, and each model's responses. Several ranks:
    torchrun --nproc-per-node 2 -m megatron_davinci eval next-token ...
    Example: davinci eval next-token rmt.yaml --corpus held-out --model base=Qwen3-14B --model rmt=runs/rmt --out eval
    """
    from megatron_davinci.config import load_recipe
    from megatron_davinci.evaluate.model_names import named_models
    from megatron_davinci.evaluate.next_token import Plan, evaluate

    plan = Plan(corpus, positions, budget, temperature, documents)
    tables = evaluate(load_recipe(recipe, overrides or []), named_models(model), plan, out)
    if tables:
        typer.echo(tables)


@app.command("problems")
def problems(
    recipe: Annotated[Path, typer.Argument(help="Recipe with objective grpo: template, grader, lengths, layout.")],
    corpus: Annotated[
        Path, typer.Option(callback=plain_prefix, help="PREFIX of held-out problems, of davinci rmt problems.")
    ],
    model: Annotated[
        list[str],
        typer.Option(help="NAME=DIRECTORY, or NAME=ADDRESS of davinci serve; repeatable."),
    ],
    out: Annotated[Path, typer.Option(help="Directory to make.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as objective.max_tokens=512")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the likeliest token.")] = 0.0,
    batch: Annotated[int, typer.Option(min=1, help="Problems that are answered together.")] = 64,
    as_json: AsJson = False,
) -> None:
    """How many held-out problems each model solves, by difficulty, with intervals, and how long its responses are.

    Problems that the recipe trains on are left out. OUT has tables.md, results.json, and each model's responses.
    Several ranks: torchrun --nproc-per-node 2 -m megatron_davinci eval problems ...
    Example: davinci eval problems grpo.yaml --corpus corpus/gsm8k-test --model base=Qwen3-14B --model grpo=runs/grpo
    --out eval
    """
    from megatron_davinci.config import load_recipe
    from megatron_davinci.evaluate.model_names import named_models
    from megatron_davinci.evaluate.problems import evaluate_problems

    loaded = load_recipe(recipe, overrides or [])
    table = evaluate_problems(loaded, named_models(model), corpus, temperature, batch, out)
    if table:
        typer.echo((out / "results.json").read_text() if as_json else table)


@app.command("checkpoints")
def checkpoints(
    recipe: Annotated[Path, typer.Argument(help="Recipe of a run that held documents out.")],
    out: Annotated[Path, typer.Option(help="Directory to make: results.json, table.md, curves.png.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value")] = None,
    stage: Annotated[str | None, typer.Option(help="Whose corpora and layout; default: the last stage's.")] = None,
    scores: Annotated[
        list[Path] | None,
        typer.Option(help='Scores measured elsewhere, to be fitted too: {"pass@1": {"200": 0.31, ...}}; repeatable.'),
    ] = None,
) -> None:
    """Held-out loss of each source at every checkpoint that a run has kept, with a log-linear fit over steps.

    Several ranks: torchrun --nproc-per-node 2 -m megatron_davinci eval checkpoints ...
    Example: davinci eval checkpoints recipe.yaml --out curves
    """
    from megatron_davinci.config import load_recipe
    from megatron_davinci.evaluate.checkpoints import evaluate_checkpoints
    from megatron_davinci.evaluate.curves import read_scores

    known = read_scores(scores or ())
    table = evaluate_checkpoints(load_recipe(recipe, overrides or []), stage, known, out)
    if table:
        typer.echo(table)


@app.command("benchmarks")
@resumable
def benchmarks(
    tasks: Annotated[str, typer.Option(help="Benchmarks, with commas between; default: those below --data.")] = "",
    data: Annotated[Path, typer.Option(help="Directory with the benchmarks' files.")] = Path("benchmark-data"),
    model: Annotated[
        list[str] | None,
        typer.Option(help="NAME=CHECKPOINT, a Hugging Face directory or an address that ends in /v1; repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory to make, or to go on with.")] = None,
    exclude: Annotated[
        list[Path] | None, typer.Option(help="Report of davinci data decontaminate; repeatable.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Answers to each question.")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the likeliest token.")] = 0.0,
    chat: Annotated[bool, typer.Option("--chat", help="Ask by the model's chat template.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Number of questions of each, from the first.")] = None,
    engine: Annotated[str, typer.Option(help="transformers in this process, or vllm.")] = "transformers",
    environment: Annotated[Path, typer.Option(help="vLLM's own, of davinci rollout setup.")] = Path(".venv-vllm"),
    concurrency: Annotated[int, typer.Option(min=1, help="Requests to a server at a time.")] = 16,
    rescore: Annotated[bool, typer.Option("--rescore", help="Score what was answered; no model is needed.")] = False,
    show: Annotated[int, typer.Option(min=0, help="Number of wrong answers of each to print.")] = 0,
    check: Annotated[bool, typer.Option("--check", help="Only say what is below --data, and how to fetch it.")] = False,
    sandbox: Annotated[str, typer.Option(help="bubblewrap, podman or docker.")] = "bubblewrap",
    without: Annotated[list[str] | None, typer.Option(help="A protection that this machine may lack.")] = None,
    unsafe: Annotated[bool, typer.Option("--unsafe", help="Run programs of models without any sandbox.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Benchmarks of checkpoints: shares with intervals, without what has leaked, and the difference to the first model.

    What is answered is kept: killed, started again, or with one model more, nothing is asked twice.
    Example: davinci eval benchmarks --tasks humaneval,gsm8k --data DATA --model base=Qwen2.5-7B --model mid=runs/mid
    --exclude leakage.json --out eval
    """
    from data_prep.io.exit_codes import print_done
    from data_prep.io.files import json_bytes
    from megatron_davinci.evaluate.benchmarks.answers import SamplingOptions
    from megatron_davinci.evaluate.benchmarks.command import check_command, run_of, shown_answers
    from megatron_davinci.evaluate.benchmarks.table import benchmark_table
    from megatron_davinci.evaluate.text_models.open import Engines

    if check:
        print_done(check_command(tasks, data, as_json))
        return
    run = run_of(
        tasks, data, out, model or [], SamplingOptions(samples, temperature, chat),
        Engines(engine, str(environment), concurrency), exclude=tuple(exclude or ()), limit=limit,
        rescore=rescore, sandbox=sandbox, without=tuple(without or ()), unsafe=unsafe, quiet=as_json,
    )  # fmt: skip
    results = run.run()
    shown = "" if as_json or not show else shown_answers(run, show)
    print_done(shown + (json_bytes(results).decode() if as_json else benchmark_table(results)).rstrip())


@app.command("export-lm-eval")
def export_lm_eval(
    tasks: Annotated[str, typer.Option(help="Benchmarks, with commas between.")],
    data: Annotated[Path, typer.Option(help="Directory with the benchmarks' files.")],
    out: Annotated[Path, typer.Option(help="Directory to make: a task file and the prompts of each.")],
) -> None:
    """Write the prompts as tasks of EleutherAI's lm-eval, which generates texts from them.

    Then: lm_eval --include_path lm-eval ...
    Example: davinci eval export-lm-eval --tasks gsm8k --data DATA --out lm-eval
    """
    from megatron_davinci.evaluate.benchmarks.export import export_prompts
    from megatron_davinci.evaluate.tasks.registry import named_tasks

    for line in export_prompts(named_tasks(tasks), data, out):
        typer.echo(line)


@app.command("swe-bench")
@resumable
def swe_bench(
    file: Annotated[Path, typer.Argument(help="SWE-bench's instances: SWE-bench_Verified.parquet, or JSON Lines.")],
    server: Server,
    model: ModelName,
    envs: Annotated[Path, typer.Option(help="What davinci data environments import makes of FILE; made if absent.")],
    out: Annotated[Path, typer.Option(help="Directory to make: results.json, table.md, run-N/, rollouts/.")],
    profile: Profile = "davinci-dev",
    runs: Annotated[int | None, typer.Option(help="Of each instance; 4, openswe 2.")] = None,
    steps: Steps = None,
    max_tokens: MaxTokens = None,
    temperature: Annotated[float | None, typer.Option(help="0: the likeliest token; 0, openswe 0.7.")] = None,
    reply_tokens: ReplyTokens = 16_384,
    request: RequestFields = None,
    patched: Annotated[Path | None, typer.Option(help="Rows that stand in place of FILE's own.")] = None,
    instance: Annotated[list[str] | None, typer.Option(help="An instance to evaluate; default: all.")] = None,
    trees: Annotated[Path | None, typer.Option(help="To make --envs: directory of base trees.")] = None,
    clone: Annotated[list[Path] | None, typer.Option(help="To make --envs: a clone of a repository.")] = None,
    concurrency: Annotated[int, typer.Option(help="Rollouts at a time.")] = 4,
    seconds: Seconds = 3600,
    patience: Patience = 600,
    reply_seconds: ReplySeconds = 1800,
    sandbox: Annotated[str, typer.Option(help="bubblewrap, podman or docker.")] = "bubblewrap",
    without: Annotated[list[str] | None, typer.Option(help="A protection that this machine may lack.")] = None,
    step: Annotated[
        int | None, typer.Option(help="The checkpoint's step: writes OUT/scores.json for eval checkpoints --scores.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Mean Pass@1 on SWE-bench by an agent's own work, with its spread, and what could not be judged beside it.

    Killed, and started again, it goes on at the step where it was. Torch-free.
    Example: davinci eval swe-bench Verified.parquet --envs verified --server http://HOST/v1 --model M --out eval
    """
    from data_prep.agents.chat_model import ModelSettings
    from data_prep.agents.loop import AgentLimits
    from data_prep.agents.profiles import EVALUATION_PROFILES, find_profile
    from data_prep.agents.request_fields import request_fields
    from data_prep.agents.rollouts import RolloutsJob
    from data_prep.io.exit_codes import print_done
    from data_prep.io.files import json_bytes
    from megatron_davinci.evaluate.swe_bench import SweBench, evaluate_swe_bench, results_table

    chosen = find_profile(EVALUATION_PROFILES, profile).changed(runs, steps, max_tokens, temperature)
    job = RolloutsJob(
        envs,
        server,
        ModelSettings(model, chosen.temperature, reply_tokens, request_fields(request or ())),
        chosen.rollouts,
        AgentLimits(chosen.steps, chosen.context_tokens, seconds),
        concurrency=concurrency,
        patience=patience,
        reply_seconds=reply_seconds,
        sandbox=sandbox,
        without=tuple(without or ()),
    )
    benchmark = SweBench(file, envs, trees, tuple(clone or ()), patched, tuple(instance or ()))
    results = evaluate_swe_bench(benchmark, job, out, step, quiet=as_json)
    print_done((json_bytes(results).decode() if as_json else results_table([results])).rstrip())


@app.command("swe-bench-table")
def swe_bench_table(
    evaluations: Annotated[list[Path], typer.Argument(help="Directories that davinci eval swe-bench made.")],
) -> None:
    """Several evaluations as one table in Markdown. Example: davinci eval swe-bench-table eval-base eval-mid-trained"""
    from megatron_davinci.evaluate.swe_bench import read_results, results_table

    typer.echo(results_table([read_results(folder) for folder in evaluations]), nl=False)
