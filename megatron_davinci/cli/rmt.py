"""`davinci rmt ...`: what reinforcement mid-training needs beside training itself."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from data_prep import InputError
from data_prep.cli.app import AsJson, local_model, local_tokenizer, plain_prefix
from data_prep.cli.groups import command_group
from data_prep.io.exit_codes import resumable
from data_prep.io.summary import print_summary

app = command_group("Reinforcement mid-training: difficulty of tokens, prompts, rollouts to read.")


@app.command()
@resumable
def annotate(
    prefix: Annotated[Path, typer.Argument(callback=plain_prefix, help="PREFIX of the corpus.")],
    model: Annotated[Path, typer.Option(callback=local_model, help="Hugging Face directory of the annotating model.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Megatron's fields, as key=value.")] = None,
    entropy: Annotated[
        Literal["top16", "full"], typer.Option(help="Of the 16 likeliest tokens, renormalized, or of all.")
    ] = "top16",
    as_json: AsJson = False,
) -> None:
    """How uncertain a model is of each token of a corpus: PREFIX.entropy, by which difficulty is told. Resumable.

    Several ranks: torchrun --nproc-per-node 2 -m megatron_davinci rmt annotate ... tensor_model_parallel_size=2.
    Example: davinci rmt annotate corpus/omni --model Qwen3-14B-Base bf16=true
    """
    from megatron_davinci.config import parse_overrides
    from megatron_davinci.rl.annotate import annotate as run

    told = run(prefix, model, entropy, parse_overrides(overrides or []))
    if told:
        print_summary({"annotated": str(prefix), **told}, as_json)


@app.command()
def entropies(
    prefixes: Annotated[list[Path], typer.Argument(callback=plain_prefix, help="PREFIX of each corpus.")],
    out: Annotated[Path, typer.Option(help="Picture to write: .png, .svg or .pdf.")] = Path("entropies.png"),
    as_json: AsJson = False,
) -> None:
    """Histogram of annotated corpora, and the share of tokens that are easy, medium and hard by default.

    Example: davinci rmt entropies corpus/omni --out entropies.png
    """
    from megatron_davinci.report.figures import plot_entropies

    print_summary({"picture": str(out), **plot_entropies(prefixes, out)}, as_json)


@app.command()
def prompts(
    recipe: Annotated[Path, typer.Argument(help="Recipe file (YAML) with a stage of objective rmt or grpo.")],
    out: Annotated[Path, typer.Option(help="File to write: .jsonl.zst.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as seed=7")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the prompts of a run's next step, for a sampler of your own; training then reads the rollouts from a file.

    A line for each position: the fields that a group of rollouts repeats, and the prompt's ids.
    Example: davinci rmt prompts recipe.yaml --out prompts.jsonl.zst
    """
    from megatron_davinci.config import load_recipe
    from megatron_davinci.train.write_prompts import write_prompts

    print_summary({"prompts in": str(out), **write_prompts(load_recipe(recipe, overrides or []), out)}, as_json)


@app.command()
def problems(
    inputs: Annotated[list[Path], typer.Argument(help="JSON Lines (.jsonl, .gz, .zst), a problem in each.")],
    tokenizer: Annotated[Path, typer.Option(callback=local_tokenizer, help="Directory of the model's tokenizer.")],
    out: Annotated[Path, typer.Option(help="PREFIX of the corpus to write, and of PREFIX.answers.json.")],
    problem_key: Annotated[str, typer.Option(help="Field of the problem.")] = "problem",
    answer_key: Annotated[
        str, typer.Option(help="Field of the answer, or of a solution that ends with it.")
    ] = "answer",
    difficulty_key: Annotated[str | None, typer.Option(help="Field that says how difficult a problem is.")] = None,
    split: Annotated[
        tuple[int, int] | None,
        typer.Option(help="Problems to train on and to test with: OUT-train, OUT-test, alike in difficulty."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="By which a split is drawn.")] = 1234,
    as_json: AsJson = False,
) -> None:
    """Problems with answers that can be verified, for objective grpo. The paper splits its own by --difficulty-key
    difficulty --split 4096 600.

    Of a solution the answer is what follows GSM8K's ####, else what the last \\boxed{} holds, else all of it.
    Example: davinci rmt problems gsm8k.jsonl --problem-key question --tokenizer Qwen3-14B --out corpus/gsm8k
    """
    from megatron_davinci.rl.problems import ProblemKeys, write_problems

    keys = ProblemKeys(problem_key, answer_key, difficulty_key)
    if split is not None and min(split) < 1:
        raise InputError(f"--split is {split[0]} {split[1]}: give two numbers from 1 on")
    told = write_problems(inputs, tokenizer, out, keys, split, seed)
    print_summary(told, as_json)


@app.command()
def traces(
    prefix: Annotated[Path, typer.Argument(callback=plain_prefix, help="PREFIX of the corpus.")],
    tokenizer: Annotated[Path, typer.Option(callback=local_tokenizer, help="Directory of the model's tokenizer.")],
    out: Annotated[Path, typer.Option(help="PREFIX of the corpus to write.")],
    template: Annotated[str, typer.Option(help="That of the recipe to follow.")] = "suffix_1",
    budgets: Annotated[tuple[int, int], typer.Option(help="Least and most tokens that a prompt asks for.")] = (
        160,
        800,
    ),
    thoughts: Annotated[tuple[int, int], typer.Option(help="Least and most tokens of a thought.")] = (1, 64),
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest trace; later positions are left out.")] = 1024,
    per_document: Annotated[int, typer.Option(min=1, help="Traces of each document.")] = 1,
    seed: Annotated[int, typer.Option(min=0)] = 1234,
    as_json: AsJson = False,
) -> None:
    """Prompts with answers in the right form, to fine-tune a base model on before reinforcement.

    A trace thinks the document's own next tokens, and answers with the first of them. Prompts are not trained.
    Example: davinci rmt traces corpus/format --tokenizer SmolLM2-135M --out corpus/traces
    """
    from data_prep.corpus import Corpus
    from megatron_davinci.rl.traces import TraceRules, write_traces

    rules = TraceRules(template, budgets, thoughts, max_tokens, per_document, seed)
    print_summary({"corpus": str(out), **write_traces(Corpus(prefix), tokenizer, out, rules)}, as_json)


@app.command()
def show(
    run: Annotated[Path, typer.Argument(help="Directory of a run with objective rmt or grpo.")],
    step: Annotated[int | None, typer.Option(min=1, help="As in metrics.jsonl; default: the latest.")] = None,
    prompts: Annotated[int, typer.Option(min=0, help="How many prompts to show; 0: all.")] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="For a script: a line for each prompt, all of them.")] = False,
) -> None:
    """Rollouts to read: the end of the text, each thought and answer, the truth, the parts of the reward.

    Example: davinci rmt show runs/rmt --step 40
    """
    from megatron_davinci.report.show_rollouts import rollouts_as_lines, rollouts_as_text

    if as_json:
        for line in rollouts_as_lines(run, step):
            typer.echo(line)
        return
    typer.echo(rollouts_as_text(run, step, prompts))


@app.command()
def figure(
    run: Annotated[Path, typer.Argument(help="Directory of a run.")],
    out: Annotated[Path, typer.Option(help="Picture to write: .png, .svg or .pdf.")] = Path("rmt.png"),
) -> None:
    """Reward by part, lengths and budget, accuracy by difficulty, entropy, shares, both gradient norms, over steps.

    Example: davinci rmt figure runs/rmt --out rmt.png
    """
    from megatron_davinci.report.figures import plot_run

    plot_run(run, out)
    typer.echo(out)
