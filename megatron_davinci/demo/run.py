"""The demo, step by step. Every step is what the command of the same name does."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, median
from typing import Any

from rich.console import Console

from data_prep import InputError
from data_prep.corpus import Corpus, pack_documents, save_plan
from data_prep.io.arithmetic import ceil_div
from data_prep.io.child import run_child
from data_prep.io.exit_codes import Interrupted
from data_prep.io.files import jsonl_writer, read_jsonl, write_json
from data_prep.io.shards import run_in_process
from data_prep.samples.build import BuildJob
from data_prep.sources.collect import collect_git
from data_prep.tokenize.tokenize import TokenizeJob, tokenize
from megatron_davinci.config import Recipe, dump_recipe, parse_recipe
from megatron_davinci.demo.generated_history import write_generated_history
from megatron_davinci.demo.reinforce import format_recipe, toy_recipe, write_language
from megatron_davinci.report.numbers import LAST_STEPS
from megatron_davinci.testing.tiny_model import write_model_directory

RANKS = 2
SEQ_LENGTH = 512
SEQUENCES_PER_STEP = 8
STEPS, RMT_STEPS = 120, 80
FEWEST_SAMPLES = 32
MOST_CHARACTERS = 1_200_000  # more text would only make the demo longer

console = Console(highlight=False)


def run_demo(repo: Path | None, out: Path) -> dict[str, Any]:
    """Run everything into `out`; returns the facts of the last table."""
    if out.exists():
        raise InputError(f"{out} already exists: remove it, or name another")
    try:
        return _run_all(repo, out)
    except KeyboardInterrupt:
        raise Interrupted(f"{out} is not complete: remove it, and start the same command again") from None


def _run_all(repo: Path | None, out: Path) -> dict[str, Any]:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # fp32 on two ranks: for the CPU, also where there is a GPU
    facts = _mine(repo, out)
    facts |= _make_corpus(out)
    recipe = _write_recipe(out, facts["sequences"])
    _say(f"training on {RANKS} ranks: tensor and sequence parallel, {STEPS} steps or a little more")
    command = [
        "-m",
        "megatron_davinci.launch.torchrun",
        "--standalone",
        f"--nproc-per-node={RANKS}",
        "-m",
        "megatron_davinci",
        "train",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # two ranks share this machine's cores
    if run_child([sys.executable, *command, str(out / "recipe.yaml")], environment).returncode:
        raise RuntimeError("training failed; its messages are above")
    facts |= _export(out, recipe)
    facts |= _reinforce(out / "toy_language")
    write_json(out / "facts.json", facts)
    from megatron_davinci.demo.report import write_results

    write_results(out, facts, console)
    return facts


def _say(text: str) -> None:
    console.print(f"[bold]davinci demo[/bold]  {text}", soft_wrap=True)


def _mine(repo: Path | None, out: Path) -> dict[str, Any]:
    """Records and samples of a repository; of a generated one too where its history is too short to learn from."""
    source = repo or Path.cwd()
    try:
        mined = _collect_and_build(source, out, "repository")
    except InputError:
        if repo is not None:
            raise
        _say(f"{source} has no git history (a zip has none)")
        mined = {"changes": 0, "samples": 0}
    if mined["samples"] < FEWEST_SAMPLES:
        _say(
            f"{mined['samples']} samples are too few to learn from: a generated history of small Python changes is "
            "added. Name a real one with --repo"
        )
        write_generated_history(out / "generated-history")
        generated = _collect_and_build(out / "generated-history", out, "generated")
        mined = {key: mined[key] + generated[key] for key in mined} | {"generated": generated["samples"]}
    return mined


def _collect_and_build(repository: Path, out: Path, name: str) -> dict[str, Any]:
    collected = collect_git(repository, out / "records" / name)
    built = run_in_process(BuildJob(out / "records" / name, "python"), out / "samples" / name)
    changes, samples = collected["records"], built["samples"]
    _say(f"{repository}: {changes} changes mined, {samples} of them made Python samples, each proven by replay")
    return {"changes": changes, "samples": samples}


def _make_corpus(out: Path) -> dict[str, Any]:
    """Tokenizer, corpus and pack plan of the samples' text, newest first, up to MOST_CHARACTERS."""
    texts = out / "corpus" / "texts.jsonl.zst"
    with jsonl_writer(texts) as writer:
        for text in _newest_texts(out):
            writer.write({"text": text})
    write_model_directory((record["text"] for record in read_jsonl(texts)), out / "model", chat=True)
    prefix = out / "corpus" / "demo"
    job = TokenizeJob(inputs=(str(texts),), tokenizer=out / "model", outputs={"text": prefix}, append_eod=True)
    manifest = tokenize(job)["text"]
    corpus = Corpus(prefix)
    plan = pack_documents(corpus.lengths, SEQ_LENGTH, "split")
    save_plan(plan, [corpus], out / "plan")
    _say(f"{manifest['tokens']:,} tokens in {len(plan)} sequences of {SEQ_LENGTH}, {plan.efficiency:.2%} filled")
    return {
        "documents": manifest["documents"],
        "tokens": manifest["tokens"],
        "sequences": len(plan),
        "packing_efficiency": plan.efficiency,
    }


def _newest_texts(out: Path) -> Iterator[str]:
    shards = sorted(out.glob("samples/*/samples/*.jsonl.zst"))
    texts = [record["text"] for shard in shards for record in read_jsonl(shard)]
    room = MOST_CHARACTERS
    for text in reversed(texts):
        if len(text) <= room:
            room -= len(text)
            yield text


def _write_recipe(out: Path, num_sequences: int) -> Recipe:
    blend = [{"corpus": str(out / "corpus" / "demo")}]
    epochs = ceil_div(STEPS * SEQUENCES_PER_STEP, num_sequences)
    recipe = parse_recipe(
        {
            "model": str(out / "model"),
            "megatron": {"tensor_model_parallel_size": RANKS, "sequence_parallel": True},
            "data": {
                "seq_length": SEQ_LENGTH,
                "long_documents": "split",
                "stages": [{"name": "changes", "blend": blend, "epochs": epochs, "plan": str(out / "plan")}],
            },
            "batch": {"global_batch_size": SEQUENCES_PER_STEP, "unit": "sequences", "micro_batch_size": 4},
            "schedule": {"lr": 3e-3, "lr_warmup_fraction": 0.05},
            "checkpoint": {"dir": str(out / "run"), "save_interval": 40, "save_total_limit": 1},
            "report": {"prompts": 3, "max_tokens": 48},
        }
    )
    (out / "recipe.yaml").write_text(dump_recipe(recipe))
    return recipe


def _export(out: Path, recipe: Recipe) -> dict[str, Any]:
    _say("exporting to Hugging Face, and comparing logits")
    from megatron_davinci.demo.compare import compare_logits
    from megatron_davinci.report.metrics_file import read_metrics
    from megatron_davinci.weights.to_huggingface import export_to_hf

    export_to_hf(out / "run", out / "hf")
    difference = compare_logits(recipe, out / "hf", Corpus(out / "corpus" / "demo"))
    steps = read_metrics(out / "run" / "metrics.jsonl")
    return {
        "first_loss": steps[0]["loss"],
        "last_loss": fmean(step["loss"] for step in steps[-LAST_STEPS:]),
        "steps": len(steps),
        "tokens_per_second": median(step["tokens_per_second"] for step in steps),
        "logit_difference": difference,
    }


def _reinforce(folder: Path) -> dict[str, Any]:
    """Reinforcement mid-training on a language made for it, in which only the reward tells what to think."""
    _say(f"reinforcement mid-training on a small language: the form of answers, then {RMT_STEPS} steps by own rollouts")
    from megatron_davinci.report.metrics_file import read_metrics
    from megatron_davinci.weights.to_huggingface import export_to_hf

    write_language(folder)
    _train(format_recipe(folder), folder / "form.yaml")
    export_to_hf(folder / "form", folder / "hf")
    _davinci("rmt", "annotate", folder / "docs", "--model", folder / "hf")
    _train(toy_recipe(folder, RMT_STEPS, "run"), folder / "recipe.yaml")
    steps = read_metrics(folder / "run" / "metrics.jsonl")
    matched, truncated = ([step[name] for step in steps] for name in ("accuracy", "truncated_fraction"))
    return {
        "rmt_steps": len(matched),
        "first_match": fmean(matched[:3]),
        "last_match": fmean(matched[-LAST_STEPS:]),
        "first_truncated": fmean(truncated[:3]),
        "last_truncated": fmean(truncated[-LAST_STEPS:]),
    }


def _train(recipe: dict[str, Any], path: Path) -> None:
    """In a process of its own, as a user would."""
    path.write_text(dump_recipe(parse_recipe(recipe)))
    _davinci("train", path)


def _davinci(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "megatron_davinci", *map(str, arguments)]
    if subprocess.run(command, check=False).returncode:
        raise RuntimeError(f"davinci {' '.join(command[3:])} failed; its messages are above")
