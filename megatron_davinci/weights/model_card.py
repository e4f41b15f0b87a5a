"""The model card of an exported checkpoint: README.md as the Hugging Face hub reads it. Torch-free."""

from pathlib import Path
from typing import Any

import yaml

from data_prep import InputError
from data_prep.io.files import read_json, read_regular_file
from data_prep.io.hub import HUB_NAME
from data_prep.io.markdown import cell
from data_prep.io.yaml_text import MOST_YAML_BYTES, read_yaml

_RECIPE, _PROGRESS = "recipe.yaml", "progress.json"
_TAGS = ["megatron-core", "mid-training", "megatron_davinci"]


def write_model_card(checkpoint: Path, out: Path) -> None:
    """Write README.md into `out`: what `checkpoint` (a step's directory) says of its recipe, steps and tokens.

    Paths of this machine are left out: a corpus is named by its last part. A checkpoint of others gives the head alone.
    """
    recipe, progress = _read(checkpoint)
    facts: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": _TAGS}
    base = _hub_name(recipe.get("init_from"))
    if base is not None:
        facts["base_model"] = base
    lines = ["---", yaml.safe_dump(facts, sort_keys=False).rstrip(), "---", "", f"# {_title(checkpoint)}", ""]
    lines += _training(recipe, progress) if recipe else [f"Exported by megatron_davinci from {checkpoint.name}."]
    lines += [
        "",
        "Licence and intended use depend on the base model and on the data: state them here before you publish.",
    ]
    (out / "README.md").write_text("\n".join(lines) + "\n")


def _title(checkpoint: Path) -> str:
    """Run and step, by their directories; nothing of the output, whose bytes depend on the checkpoint alone."""
    folder = checkpoint.resolve()
    return cell(f"{folder.parent.name}, {folder.name}")


def _read(checkpoint: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Recipe and progress, or nothing where there are none, or others wrote them."""
    recipe, progress = checkpoint / _RECIPE, checkpoint / _PROGRESS
    if not (recipe.is_file() and progress.is_file()):
        return {}, {}
    try:
        found = read_yaml(read_regular_file(recipe, MOST_YAML_BYTES), str(recipe))
        counts = read_json(progress)
    except InputError:
        return {}, {}
    return (found, counts) if isinstance(found, dict) and isinstance(counts, dict) else ({}, {})


def _hub_name(source: Any) -> str | None:
    """OWNER/NAME of weights that came from the hub's cache, which names a folder models--OWNER--NAME."""
    parts = [part for part in Path(source).parts if part.startswith("models--")] if isinstance(source, str) else []
    name = parts[-1].removeprefix("models--").replace("--", "/", 1) if parts else ""
    return name if HUB_NAME.fullmatch(name) else None


def _training(recipe: dict[str, Any], progress: dict[str, Any]) -> list[str]:
    """What it was trained on, in words; whatever is odd in the files is left out."""
    data, batch, schedule = (_section(recipe, name) for name in ("data", "batch", "schedule"))
    source = _last(recipe.get("init_from")) or "random weights"
    lines = [f"Trained by megatron_davinci from {source}, {cell(progress.get('step'))} steps.", ""]
    lines += ["| stage | corpora | sequence length |", "|---|---|---|"]
    for stage in _dicts(data.get("stages")):
        corpora = [_last(each.get("corpus")) for each in _dicts(stage.get("blend"))]
        length = cell(stage.get("seq_length") or data.get("seq_length"))
        lines.append(f"| {cell(stage.get('name'))} | {', '.join(corpora)} | {length} |")
    tokens = sum(each["tokens"] for each in _dicts(progress.get("ledger")) if isinstance(each.get("tokens"), int))
    return [
        *lines,
        "",
        f"Tokens consumed: {tokens:,}. Batch: {cell(batch.get('global_batch_size'))} {cell(batch.get('unit'))}. "
        f"Learning rate: {cell(schedule.get('lr'))}, {cell(schedule.get('lr_decay_style'))}.",
    ]


def _section(recipe: dict[str, Any], name: str) -> dict[str, Any]:
    found = recipe.get(name)
    return found if isinstance(found, dict) else {}


def _dicts(found: Any) -> list[dict[str, Any]]:
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _last(path: Any) -> str:
    """The last part of a path, or the name on the hub; nothing of the folders above."""
    return cell(_hub_name(path) or Path(path).name) if isinstance(path, str) else ""
