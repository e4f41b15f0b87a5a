"""Export of a torch_dist checkpoint to a Hugging Face directory. Needs no process group and builds no model."""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from data_prep import InputError
from data_prep.files import new_directory, read_json, write_json
from megatron_davinci.checkpoint.files import TOKENIZER_FILES, check_checkpoint, copy_tokenizer, latest_checkpoint
from megatron_davinci.checkpoint.metadata import read_metadata
from megatron_davinci.models.config import ModelConfig
from megatron_davinci.models.families import Mapping, mappings_of


class _Reader(FileSystemReader):
    """torch's reader with the restricted unpickler for `.metadata`."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        metadata: Metadata = read_metadata(Path(self.path) / ".metadata")
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata


def export_to_hf(checkpoint: Path, out: Path, tokenizer: Path | None) -> Path:
    """Write `out` in the form that transformers loads; returns the checkpoint that was exported.

    `checkpoint` is a step_NNNNNNN directory or a run's directory. Raises InputError, and then leaves nothing.
    """
    directory = latest_checkpoint(checkpoint) or checkpoint
    if not (directory / "manifest.json").is_file():
        raise InputError(
            f"{checkpoint} is no checkpoint: give a step_NNNNNNN directory, or a run's directory with latest"
        )
    check_checkpoint(directory)
    config = read_json(directory / "hf" / "config.json")
    model = ModelConfig.from_huggingface(config, f"{directory}/hf/config.json")
    with new_directory(out) as part:
        if tokenizer is not None and not copy_tokenizer(tokenizer, part):
            raise InputError(f"{tokenizer} has none of {', '.join(TOKENIZER_FILES)}: name a tokenizer's directory")
        if tokenizer is None and "tokenizer.json" not in copy_tokenizer(directory / "hf", part):
            print(f"{directory} has no tokenizer: name one with --tokenizer to have it in {out}", file=sys.stderr)
        tensors = _huggingface_tensors(directory, model)
        save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
        (part / "model.safetensors").chmod(0o644)  # the library writes for the owner alone
        dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
        # transformers 5 writes "dtype"; "torch_dtype" is what every release reads
        write_json(part / "config.json", {**config, "torch_dtype": dtype})
    return directory


def _huggingface_tensors(directory: Path, model: ModelConfig) -> dict[str, Tensor]:
    reader = _Reader(directory)
    stored = reader.read_metadata().state_dict_metadata
    tensors: dict[str, Tensor] = {}
    for mapping in mappings_of(model):
        for layer, tensor in _layers(reader, stored, mapping, model.num_layers):
            names = [name.replace("*", str(layer)) for name in mapping.hf]
            parts = mapping.to_hf(tensor, model)
            tensors |= {name: part.contiguous().clone() for name, part in zip(names, parts, strict=True)}
    return tensors


def _layers(reader: _Reader, stored: dict[str, Any], mapping: Mapping, num_layers: int) -> list[tuple[int, Tensor]]:
    """(layer, tensor) of one parameter; Megatron stacks a parameter of all layers into one tensor with a first axis."""
    key = mapping.megatron.replace("layers.*.", "layers.")
    entry = stored.get(key)
    if not isinstance(entry, TensorStorageMetadata):
        raise InputError(f"{reader.path} holds no tensor {key}: is it a checkpoint of this model?")
    state = {key: torch.empty(entry.size, dtype=entry.properties.dtype)}
    load(state, storage_reader=reader, planner=DefaultLoadPlanner(), no_dist=True)
    if "*" not in mapping.megatron:
        return [(0, state[key])]
    if entry.size[0] != num_layers:
        raise InputError(f"{key} holds {entry.size[0]} layers, the model has {num_layers}: it was trained differently")
    return list(enumerate(state[key]))
