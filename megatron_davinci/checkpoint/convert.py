"""Checkpoints from Hugging Face to Megatron's torch_dist and back, a slice at a time: no model, no process group."""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from xxhash import xxh3_64

from data_prep import InputError
from data_prep.files import PART, json_bytes, read_json, refuse_occupied, write_json
from data_prep.progress import counter
from megatron_davinci.checkpoint.blobs import object_bytes, write_tensor
from megatron_davinci.checkpoint.files import (
    TOKENIZER_FILES,
    check_checkpoint,
    copy_tokenizer,
    describe,
    latest_checkpoint,
)
from megatron_davinci.checkpoint.files_written import HashedFile, Journal, write_all
from megatron_davinci.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageInfo,
    TensorProperties,
    TensorStorageMetadata,
    write_metadata,
)
from megatron_davinci.checkpoint.sources import DTYPE_NAMES, StoredTensor, huggingface_tensors, megatron_tensors
from megatron_davinci.checkpoint.targets import Target, huggingface_targets, megatron_targets
from megatron_davinci.models.config import ModelConfig, load_model_config

DType = Literal["bf16", "fp16", "fp32"]
DTYPES: dict[DType, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SHARD_BYTES = 5 * 10**9  # transformers' own default
WORKERS = 2
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_WITHOUT_STATE = ("self_attention.core_attention", "self_attention.linear_proj", "self_attention.linear_qkv",
                  "mlp.linear_fc1", "mlp.linear_fc2")  # fmt: skip
Count = Callable[[int], None]


def export_to_hf(
    checkpoint: Path, out: Path, tokenizer: Path | None, dtype: DType | None = None, shard_bytes: int = SHARD_BYTES
) -> Path:
    """Write `out` in the form that transformers loads; returns the checkpoint that was exported.

    `checkpoint` is a step_NNNNNNN directory or a run's directory; `dtype`: that of its weights where none is given.
    Raises InputError, and then leaves nothing under the name of `out`.
    """
    directory = latest_checkpoint(checkpoint) or checkpoint
    config = _huggingface_config(directory)
    model = ModelConfig.from_huggingface(config, f"{directory}/hf/config.json")
    if tokenizer is not None and not any((tokenizer / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(f"{tokenizer} has none of {', '.join(TOKENIZER_FILES)}: name a tokenizer's directory")
    refuse_occupied(out)
    if (directory / "manifest.json").is_file():
        check_checkpoint(directory)
    tensors = megatron_tensors(directory)
    targets = huggingface_targets(tensors, model, directory)
    chosen = _dtype(tensors, dtype)
    part = _part_of(out)
    shards = _shards(targets, chosen, shard_bytes)
    journal = Journal(part, _identity(directory, targets, chosen, shard_bytes))
    with counter("bytes", sum(target.num_bytes(chosen) for target in targets)) as count:
        write_all(
            list(shards), lambda name: _write_safetensors(part / name, shards[name], chosen, count), journal, WORKERS
        )
    if len(shards) > 1:
        total = sum(target.num_bytes(chosen) for target in targets)
        weight_map = {target.name: name for name, shard in shards.items() for target in shard}
        write_json(part / _INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    # transformers 5 writes "dtype"; "torch_dtype" is what every release reads
    write_json(part / "config.json", {**config, "torch_dtype": str(chosen).removeprefix("torch.")})
    found = copy_tokenizer(tokenizer or directory / "hf", part)
    if "tokenizer.json" not in found:
        print(f"{directory} has no tokenizer: name one with --tokenizer to have it in {out}", file=sys.stderr)
    _complete(part, out, journal)
    return directory


def import_from_hf(source: Path, out: Path, dtype: DType | None = None, shard_bytes: int = SHARD_BYTES) -> None:
    """Write `out` as a torch_dist checkpoint of the weights alone, which Megatron loads in any layout.

    Raises InputError, and then leaves nothing under the name of `out`.
    """
    model = load_model_config(str(source))
    refuse_occupied(out)
    tensors = huggingface_tensors(source)
    targets = megatron_targets(tensors, model, source)
    chosen = _dtype(tensors, dtype)
    part = _part_of(out)
    shards = {f"__0_{i}.distcp": shard for i, shard in enumerate(_split(targets, chosen, shard_bytes))}
    journal = Journal(part, _identity(source, targets, chosen, shard_bytes))
    with counter("bytes", sum(target.num_bytes(chosen) for target in targets)) as count:
        write_all(list(shards), lambda name: _write_distcp(part / name, shards[name], chosen, count), journal, WORKERS)
    write_metadata(_metadata(shards, journal, chosen, model, part), part / ".metadata")
    torch.save({"checkpoint_version": 3.0, "iteration": 0}, part / "common.pt")
    versions = {"sharded_backend_version": 1, "common_backend_version": 1}
    write_json(part / "metadata.json", {"sharded_backend": "torch_dist", "common_backend": "torch", **versions})
    (part / "hf").mkdir(exist_ok=True)
    shutil.copyfile(source / "config.json", part / "hf" / "config.json")
    copy_tokenizer(source, part / "hf")
    _complete(part, out, journal)


def _huggingface_config(directory: Path) -> dict[str, Any]:
    if not (directory / ".metadata").is_file():
        raise InputError(
            f"{directory} is no checkpoint: give a step_NNNNNNN directory, or a run's directory with latest"
        )
    config: dict[str, Any] = read_json(directory / "hf" / "config.json")
    return config


def _dtype(tensors: dict[str, StoredTensor], asked: DType | None) -> torch.dtype:
    """What is written: as asked, else what most elements are."""
    if asked is not None:
        return DTYPES[asked]
    elements: dict[torch.dtype, int] = {}
    for tensor in tensors.values():
        elements[tensor.dtype] = elements.get(tensor.dtype, 0) + tensor.shape[0] * tensor.columns
    return max(elements, key=lambda dtype: elements[dtype])


def _part_of(out: Path) -> Path:
    part = out.resolve().with_name(out.resolve().name + PART)
    part.mkdir(parents=True, exist_ok=True)
    return part


def _identity(source: Path, targets: Sequence[Target], dtype: torch.dtype, shard_bytes: int) -> dict[str, Any]:
    """What an interrupted conversion must have in common with one that takes it up."""
    files = sorted(path for path in source.iterdir() if path.is_file())
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    shapes = [(target.name, target.layer, target.shape) for target in targets]
    return {
        "source": xxh3_64(repr(stats).encode()).hexdigest(),
        "tensors": xxh3_64(repr(shapes).encode()).hexdigest(),
        "dtype": str(dtype),
        "shard_bytes": shard_bytes,
    }


def _split(targets: Sequence[Target], dtype: torch.dtype, shard_bytes: int) -> list[list[Target]]:
    """Neighbours together, up to the size; a larger tensor alone."""
    shards: list[list[Target]] = [[]]
    size = 0
    for target in targets:
        needed = target.num_bytes(dtype)
        if shards[-1] and size + needed > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(target)
        size += needed
    return shards


def _shards(targets: Sequence[Target], dtype: torch.dtype, shard_bytes: int) -> dict[str, list[Target]]:
    shards = _split(targets, dtype, shard_bytes)
    if len(shards) == 1:
        return {_SINGLE: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards, 1)}


def _write_safetensors(path: Path, shard: Sequence[Target], dtype: torch.dtype, count: Count) -> dict[str, Any]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for target in shard:
        end = at + target.num_bytes(dtype)
        header[target.name] = {"dtype": DTYPE_NAMES[dtype], "shape": target.shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8
    file = HashedFile(path, count)
    file.write(len(text).to_bytes(8, "little") + text)
    for target in shard:
        for piece in target.pieces(dtype):
            file.write(piece)
    return file.finish()


def _write_distcp(path: Path, shard: Sequence[Target], dtype: torch.dtype, count: Count) -> dict[str, Any]:
    file = HashedFile(path, count)
    places = []
    for target in shard:
        shape = target.shape if target.layer is None else (1, *target.shape)
        places.append(write_tensor(file, shape, dtype, target.pieces(dtype)))
    return {**file.finish(), "places": places}


def _metadata(
    shards: dict[str, list[Target]], journal: Journal, dtype: torch.dtype, model: ModelConfig, part: Path
) -> Metadata:
    """Which chunk lies where; each layer is a chunk of a tensor of all layers."""
    metadata = Metadata({})
    for name, shard in shards.items():
        for target, (start, length) in zip(shard, journal.files[name]["places"], strict=True):
            stacked = target.layer is not None
            size = torch.Size((model.num_layers, *target.shape) if stacked else target.shape)
            offsets = torch.Size([target.layer or 0] * stacked + [0] * len(target.shape))
            sizes = torch.Size((1, *target.shape) if stacked else target.shape)
            empty = TensorStorageMetadata(TensorProperties(dtype), size, [])
            entry = metadata.state_dict_metadata.setdefault(target.name, empty)
            assert isinstance(entry, TensorStorageMetadata)
            entry.chunks.append(ChunkStorageMetadata(offsets, sizes))
            metadata.storage_data[MetadataIndex(target.name, offsets)] = StorageInfo(name, start, length)
    _add_objects(metadata, model.num_layers, part / "__1_0.distcp")
    return metadata


def _add_objects(metadata: Metadata, num_layers: int, path: Path) -> None:
    """The state that Megatron's layers have beside their tensors: none, but it looks for it."""
    blob = object_bytes()
    names = [
        f"decoder.layers.{module}._extra_state/shard_{layer}_{num_layers}"
        for module in _WITHOUT_STATE
        for layer in range(num_layers)
    ]
    path.write_bytes(blob * len(names))
    for number, name in enumerate(names):
        metadata.state_dict_metadata[name] = BytesStorageMetadata()
        metadata.storage_data[MetadataIndex(name)] = StorageInfo(path.name, number * len(blob), len(blob))


def _complete(part: Path, out: Path, journal: Journal) -> None:
    """Write the manifest, and give the directory its name."""
    hashes = {name: {key: entry[key] for key in ("bytes", "xxh3_64")} for name, entry in journal.files.items()}
    for path in sorted(part.rglob("*")):
        name = str(path.relative_to(part))
        if path.is_file() and name not in hashes and path.name != "journal.jsonl":
            hashes[name] = describe(path)
    (part / "manifest.json").write_bytes(json_bytes({"files": hashes}))
    journal.close()
    if out.is_dir():
        out.rmdir()  # it is empty
    part.replace(out.resolve())
