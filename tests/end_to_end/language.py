"""The language of doors, taught and annotated, and runs that learn it from their own rollouts."""

from pathlib import Path
from typing import Any

import yaml

from megatron_davinci.config import parse_recipe
from megatron_davinci.demo.reinforce import format_recipe, write_language
from megatron_davinci.report.metrics_file import read_metrics
from megatron_davinci.rl.annotate import annotate
from megatron_davinci.train.loop import train
from megatron_davinci.weights.to_huggingface import export_to_hf


def teach(folder: Path, model: dict[str, Any] | None = None) -> None:
    """FOLDER/hf: a model that knows the form of answers; FOLDER/docs: an annotated corpus of what is true."""
    write_language(folder, **(model or {}))
    train(parse_recipe(format_recipe(folder)))
    export_to_hf(folder / "form", folder / "hf")
    annotate(folder / "docs", folder / "hf", "top16", {})


def learn(values: dict[str, Any]) -> list[dict[str, float]]:
    """Train; gives the metrics of each step."""
    train(parse_recipe(values))
    return read_metrics(Path(values["checkpoint"]["dir"]) / "metrics.jsonl")


def write_recipe(folder: Path, name: str, values: dict[str, Any], **changes: dict[str, Any]) -> Path:
    """FOLDER/NAME.yaml, of a run in FOLDER/NAME, with changes to the sections of a recipe."""
    values = {**values, "checkpoint": {**values["checkpoint"], "dir": str(folder / name)}}
    for section, change in changes.items():
        values[section] = {**values.get(section, {}), **change}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path
