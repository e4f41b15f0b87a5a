"""Checkpoints from Hugging Face to Megatron's torch_dist, a slice at a time: no model, no process group."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data_prep import InputError
from data_prep.io.files import refuse_link_outside, refuse_occupied, write_json
from megatron_davinci.models.config import ModelConfig
from megatron_davinci.weights.checkpoint_files import copy_generation, copy_tokenizer
from megatron_davinci.weights.conversion import Conversion, ConversionOptions
from megatron_davinci.weights.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageInfo,
    TensorProperties,
    TensorStorageMetadata,
    write_metadata,
)
from megatron_davinci.weights.open_weights import open_huggingface
from megatron_davinci.weights.output_files import HashedFile
from megatron_davinci.weights.tensor_plan import PlannedTensor
from megatron_davinci.weights.torch_zip import object_bytes, write_tensor

_WITHOUT_STATE = ("self_attention.core_attention", "self_attention.linear_proj", "self_attention.linear_qkv",
                  "mlp.linear_fc1", "mlp.linear_fc2")  # fmt: skip
_QK_NORMS = ("self_attention.q_layernorm", "self_attention.k_layernorm")
# What Megatron looks for in metadata.json, and in common.pt.
_FORMAT = {
    "sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch",
    "common_backend_version": 1,
}  # fmt: skip
_COMMON = {"checkpoint_version": 3.0, "iteration": 0}


def import_from_hf(source: Path, out: Path, options: ConversionOptions | None = None) -> None:
    """Write `out` as a torch_dist checkpoint of the weights alone, which Megatron loads in any layout.

    Raises InputError, and then leaves nothing under the name of `out`.
    """
    weights = open_huggingface(source)
    refuse_occupied(out)
    with Conversion(
        source, out, weights.megatron_tensors(), weights.model, options or ConversionOptions()
    ) as conversion:
        shards = {f"__0_{i}.distcp": group for i, group in enumerate(conversion.groups)}
        conversion.write(shards, write_distcp)
        metadata = Metadata({})
        for name, shard in shards.items():
            places = conversion.journal.files[name]["places"]
            _add_tensors(metadata, name, shard, places, weights.model.num_layers)
        _add_objects(metadata, weights.model, conversion.part / "__1_0.distcp")
        write_metadata(metadata, conversion.part / ".metadata")
        torch.save(_COMMON, conversion.part / "common.pt")
        write_json(conversion.part / "metadata.json", _FORMAT)
        (conversion.part / "hf").mkdir(exist_ok=True)
        shutil.copyfile(refuse_link_outside(source / "config.json"), conversion.part / "hf" / "config.json")
        copy_tokenizer(source, conversion.part / "hf")
        copy_generation(source, conversion.part / "hf")
        conversion.complete()


def write_distcp(file: HashedFile, shard: Sequence[PlannedTensor]) -> dict[str, Any]:
    """Tensors one after the other; returns where each lies."""
    return {"places": [write_tensor(file, _chunk(target), target.written, target.pieces()) for target in shard]}


def _chunk(target: PlannedTensor) -> tuple[int, ...]:
    """Shape of its chunk: a layer is one of a tensor of all layers."""
    return target.shape if target.layer is None else (1, *target.shape)


def _add_tensors(
    metadata: Metadata, name: str, shard: Sequence[PlannedTensor], places: Sequence[tuple[int, int]], num_layers: int
) -> None:
    """Which chunk lies where in a file."""
    for target, (start, length) in zip(shard, places, strict=True):
        layers = () if target.layer is None else (num_layers,)
        offsets = torch.Size([target.layer or 0] * len(layers) + [0] * len(target.shape))
        empty = TensorStorageMetadata(TensorProperties(target.written), torch.Size((*layers, *target.shape)), [])
        entry = metadata.state_dict_metadata.setdefault(target.name, empty)
        assert isinstance(entry, TensorStorageMetadata)
        if entry.properties.dtype != target.written:
            raise InputError(f"{target.full_name} has another type than in other layers: give all one with --dtype")
        entry.chunks.append(ChunkStorageMetadata(offsets, torch.Size(_chunk(target))))
        metadata.storage_data[MetadataIndex(target.name, offsets)] = StorageInfo(name, start, length)


def _add_objects(metadata: Metadata, model: ModelConfig, path: Path) -> None:
    """The state that Megatron's layers have beside their tensors: none, but it looks for it."""
    blob = object_bytes()
    norms = _QK_NORMS if model.family.megatron["qk_layernorm"] else ()
    names = [
        f"decoder.layers.{module}._extra_state/shard_{layer}_{model.num_layers}"
        for module in (*_WITHOUT_STATE, *norms)
        for layer in range(model.num_layers)
    ]
    names.append("decoder.final_layernorm._extra_state/shard_0_1")  # Transformer Engine's norms have it too
    path.write_bytes(blob * len(names))
    for number, name in enumerate(names):
        metadata.state_dict_metadata[name] = BytesStorageMetadata()
        metadata.storage_data[MetadataIndex(name)] = StorageInfo(path.name, number * len(blob), len(blob))
