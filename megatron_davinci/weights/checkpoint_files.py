"""The files of a run and of a checkpoint: are they whole, which are kept, what goes beside them."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xxhash import xxh3_64

from data_prep import InputError
from data_prep.io.files import PART, publish, read_json, refuse_link_outside
from megatron_davinci.weights.metadata import read_metadata
from megatron_davinci.weights.paths import checkpoints_of, step_of

PROGRESS_FILE = "progress.json"
_MANIFEST, _WEIGHTS = "manifest.json", ".distcp"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt",
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "tokenizer.model",
)  # fmt: skip
_GENERATION = "generation_config.json"


def name_latest(checkpoint: Path) -> None:
    """Have RUN/latest name a checkpoint, by rename, when the name is on disk."""
    pointer = checkpoint.with_name(f"latest{PART}")
    pointer.write_text(f"{checkpoint.name}\n")
    publish(pointer, checkpoint.with_name("latest"))


def prune_checkpoints(newest: Path, limit: int, retain_interval: int | None = None) -> None:
    """Leave the `limit` newest checkpoints up to `newest`, and those whose step is a multiple of `retain_interval`.

    Later ones belong to a course that the run has left; unfinished ones to runs that were killed.
    """
    existing = checkpoints_of(newest.parent)
    kept = [path for path in existing if path.name <= newest.name]
    forever = {path for path in kept if retain_interval and step_of(path) % retain_interval == 0}
    kept = [path for path in kept if path in forever or path in kept[-limit:]]
    for path in [*existing, *newest.parent.glob(f"step_*{PART}")]:
        if path not in kept:
            try:
                shutil.rmtree(path)
            except OSError as error:  # somebody reads it, say: the run goes on, and tries again after the next save
                print(f"{path} cannot be removed yet: {error}", file=sys.stderr, flush=True)


def check_checkpoint(directory: Path) -> None:
    """Raise InputError when a file is missing or altered, or `.metadata` names code that Megatron's never does.

    Weights are only known to have their size: see `altered_weights`.
    """
    for name, known in _inventory(directory).items():
        path = directory / name
        if path.suffix == _WEIGHTS:
            whole = path.is_file() and path.stat().st_size == known.get("bytes")
        else:
            whole = path.is_file() and file_entry(path) == known
        if not whole:
            raise InputError(f"{path} is missing or altered")
    read_metadata(directory / ".metadata")


def altered_weights(directory: Path, share: int, shares: int) -> list[str]:
    """Files of weights that are not as they were written, of every `shares`-th file from number `share` on."""
    inventory = _inventory(directory)
    names = [name for name in inventory if name.endswith(_WEIGHTS)]
    return [name for name in names[share::shares] if file_entry(directory / name) != inventory[name]]


def _inventory(directory: Path) -> dict[str, dict[str, Any]]:
    if not (directory / _MANIFEST).is_file():
        raise InputError(f"{directory / _MANIFEST} is missing or altered")
    manifest = read_json(directory / _MANIFEST)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    names = list(files) if isinstance(files, dict) else [".."]
    plain = all(len(name) < 256 and ".." not in Path(name).parts and not name.startswith("/") for name in names)
    if not isinstance(files, dict) or not plain or not all(isinstance(known, dict) for known in files.values()):
        raise InputError(f"{directory / _MANIFEST} is missing or altered")
    return files


def copy_tokenizer(source: Path, target: Path) -> list[str]:
    """Copy the tokenizer's files that a directory has; returns their names."""
    found = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    for name in found:
        shutil.copyfile(refuse_link_outside(source / name), target / name)
    return found


def copy_generation(source: Path, target: Path) -> None:
    """Copy how a model is sampled from by default, where its directory says so."""
    if (source / _GENERATION).is_file():
        shutil.copyfile(refuse_link_outside(source / _GENERATION), target / _GENERATION)


def take_inventory(directory: Path, wanted: Callable[[str], bool]) -> dict[str, dict[str, Any]]:
    """Files of a checkpoint whose names are wanted, each on disk (fsync) when this returns."""
    names = {str(path.relative_to(directory)): path for path in directory.rglob("*") if path.is_file()}
    found = {name: path for name, path in sorted(names.items()) if wanted(name)}
    for path in found.values():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return {name: file_entry(path) for name, path in found.items()}


def file_entry(path: Path) -> dict[str, Any]:
    """Size and hash of a file, as a manifest has them."""
    digest = xxh3_64()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return {"bytes": path.stat().st_size, "xxh3_64": digest.hexdigest()}
