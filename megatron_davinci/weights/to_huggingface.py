"""Checkpoints from Megatron's torch_dist to Hugging Face, a slice at a time: no model, no process group."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep import InputError
from data_prep.io.files import refuse_occupied, write_json
from megatron_davinci.weights.checkpoint_files import TOKENIZER_FILES, check_checkpoint, copy_generation, copy_tokenizer
from megatron_davinci.weights.conversion import Conversion, ConversionOptions
from megatron_davinci.weights.model_card import write_model_card
from megatron_davinci.weights.open_weights import open_checkpoint
from megatron_davinci.weights.output_files import HashedFile
from megatron_davinci.weights.stored_tensors import DTYPE_NAMES
from megatron_davinci.weights.tensor_plan import PlannedTensor

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def export_to_hf(
    checkpoint: Path,
    out: Path,
    tokenizer: Path | None = None,
    options: ConversionOptions | None = None,
    model: str | None = None,
) -> Path:
    """Write `out` in the form that transformers loads; returns the checkpoint that was exported.

    `checkpoint`: a torch_dist checkpoint, or a run's directory; `model`: a preset or Hugging Face directory, for a
    checkpoint that does not say what it holds. Raises InputError, and then leaves nothing under the name of `out`.
    """
    weights = open_checkpoint(checkpoint, model)
    directory = weights.directory
    source = tokenizer or _own_or(model, directory, "tokenizer.json")
    if tokenizer is not None and not any((tokenizer / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(f"{tokenizer} has none of {', '.join(TOKENIZER_FILES)}: name a tokenizer's directory")
    refuse_occupied(out)
    targets = weights.huggingface_tensors()
    if (directory / "manifest.json").is_file():
        check_checkpoint(directory)  # whose own checksums are looked at when they are read
    with Conversion(directory, out, targets, weights.model, options or ConversionOptions()) as conversion:
        shards = _named(conversion.groups)
        conversion.write(shards, _write_safetensors)
        if len(shards) > 1:
            weight_map = {target.name: name for name, shard in shards.items() for target in shard}
            index = {"metadata": {"total_size": conversion.total_bytes}, "weight_map": weight_map}
            write_json(conversion.part / _INDEX, index)
        # transformers 5 writes "dtype", and believes it; "torch_dtype" is what every release reads
        config = {**weights.model.huggingface, "torch_dtype": str(conversion.dtype).removeprefix("torch.")}
        config.pop("dtype", None)
        write_json(conversion.part / "config.json", config)
        copy_generation(_own_or(model, directory, "generation_config.json"), conversion.part)
        if not {"tokenizer.json", "tokenizer.model"} & set(copy_tokenizer(source, conversion.part)):
            print(f"{directory} has no tokenizer: name one with --tokenizer to have it in {out}", file=sys.stderr)
        write_model_card(directory, conversion.part)
        conversion.complete()
    return directory


def _own_or(model: str | None, directory: Path, file: str) -> Path:
    """Where a file lies beside the weights, or in the directory that says what model they are of."""
    own = directory / "hf"
    return own if model is None or (own / file).is_file() else Path(model)


def _named(groups: Sequence[Sequence[PlannedTensor]]) -> dict[str, Sequence[PlannedTensor]]:
    if len(groups) == 1:
        return {_SINGLE: groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, 1)}


def _write_safetensors(file: HashedFile, shard: Sequence[PlannedTensor]) -> dict[str, Any]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for target in shard:
        end = at + target.num_bytes
        header[target.name] = {"dtype": DTYPE_NAMES[target.written], "shape": target.shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8
    file.write(len(text).to_bytes(8, "little") + text)
    for target in shard:
        for piece in target.pieces():
            file.write(piece)
    return {}
