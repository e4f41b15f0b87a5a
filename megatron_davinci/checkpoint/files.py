"""The files of a run and of a checkpoint: which is the latest, is it whole, what goes beside it."""

import os
import shutil
from pathlib import Path
from typing import Any

from xxhash import xxh3_64

from data_prep import InputError
from data_prep.files import read_json
from megatron_davinci.checkpoint.metadata import read_metadata

PROGRESS_FILE = "progress.json"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt",
    "added_tokens.json", "chat_template.jinja", "generation_config.json",
)  # fmt: skip


def latest_checkpoint(run: Path) -> Path | None:
    """The checkpoint that RUN/latest names, None where there is none."""
    pointer = run / "latest"
    return run / pointer.read_text().strip() if pointer.is_file() else None


def prune(newest: Path, keep: int) -> None:
    """Leave the `keep` newest checkpoints up to `newest`; later ones belong to a course that the run has left."""
    existing = sorted(newest.parent.glob("step_*[0-9]"))
    kept = [path for path in existing if path.name <= newest.name][-keep:]
    for path in existing:
        if path not in kept:
            shutil.rmtree(path)


def check_checkpoint(directory: Path) -> None:
    """Raise InputError when a file is missing or altered, or `.metadata` names code that Megatron's never does."""
    for name, known in read_json(directory / "manifest.json")["files"].items():
        path = directory / name
        if not path.is_file() or describe(path) != known:
            raise InputError(
                f"{path} is missing or altered: name an earlier checkpoint in {directory.parent / 'latest'}"
            )
    read_metadata(directory / ".metadata")  # Megatron will read it with a plain unpickler


def copy_tokenizer(source: Path, target: Path) -> list[str]:
    """Copy the tokenizer's files that a directory has; returns their names."""
    found = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    for name in found:
        shutil.copyfile(source / name, target / name)
    return found


def take_inventory(directory: Path) -> dict[str, dict[str, Any]]:
    """Every file of a checkpoint, each on disk (fsync) when this returns."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return {str(path.relative_to(directory)): describe(path) for path in files}


def describe(path: Path) -> dict[str, Any]:
    """Size and hash of a file, as a manifest has them."""
    digest = xxh3_64()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return {"bytes": path.stat().st_size, "xxh3_64": digest.hexdigest()}
