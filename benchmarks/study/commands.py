"""The project's own commands, each in a process of its own, skipped where what it makes is there."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from megatron_davinci.report.metrics_file import read_metrics
from megatron_davinci.report.starts_file import read_starts


def davinci(*arguments: str | Path) -> None:
    """Run a command to its end; what it says goes to the log of whoever calls. SystemExit where it fails."""
    done = subprocess.run([sys.executable, "-m", "megatron_davinci", *map(str, arguments)], check=False)
    if done.returncode:
        sys.exit(f"davinci {arguments[0]} ended with {done.returncode}")


def train(recipe: Mapping[str, Any]) -> None:
    """Run a recipe, which is kept beside its run; one that was interrupted goes on."""
    directory = Path(recipe["checkpoint"]["dir"])
    directory.mkdir(parents=True, exist_ok=True)
    path = directory.with_name(f"{directory.name}.yaml")
    path.write_text(yaml.safe_dump(dict(recipe), sort_keys=False))
    davinci("train", path)
    exit_unless_done(directory)


def exit_unless_done(run: Path) -> None:
    """SystemExit where a run was stopped: by SIGTERM, `davinci train` saves and ends with 0."""
    done, planned = read_metrics(run / "metrics.jsonl")[-1]["step"], read_starts(run)[-1].num_steps
    if done < planned:
        sys.exit(f"{run} was stopped after step {done} of {planned}: the same command goes on")


def tokenize(texts: Path, tokenizer: Path, prefix: Path) -> None:
    """JSON Lines to a corpus."""
    if not prefix.with_name(f"{prefix.name}.idx").is_file():
        davinci("data", "tokenize", texts, "--tokenizer", tokenizer, "--append-eod", "--out", prefix)


def annotate(prefix: Path, model: Path, *fields: str) -> None:
    """Difficulties of a corpus."""
    if not prefix.with_name(f"{prefix.name}.entropy.json").is_file():
        davinci("rmt", "annotate", prefix, "--model", model, *fields)


def traces(
    prefix: Path, tokenizer: Path, out: Path, template: Path, thoughts: tuple[int, int], longest: int, each: int
) -> None:
    """Prompts about next tokens with answers in the right form, `each` of a document; budgets are drawn as the lengths
    of `thoughts` are."""
    if out.with_name(f"{out.name}.idx").is_file():
        return
    low, high = map(str, thoughts)
    bounds = ("--thoughts", low, high, "--budgets", "10", high, "--max-tokens", str(longest))
    named = ("--tokenizer", tokenizer, "--out", out, "--template", template, "--per-document", str(each))
    davinci("rmt", "traces", prefix, *named, *bounds)
