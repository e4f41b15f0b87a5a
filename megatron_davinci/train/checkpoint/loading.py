"""What `dist_checkpointing.load` does, with this project's own readers: nothing of a checkpoint is unpickled.

Megatron and torch unpickle common.pt, `.metadata`, and each object in a .distcp file, where 63 bytes can run a command
(pytorch 189308, 195600). Here a rank copies what it wants of each chunk out of mapped files, and rebuilds objects by
`torch_objects`. Which parts of which tensor a rank wants, factories, and what replicas share out is Megatron's.
"""

import math
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import dict_list_map_outplace, merge
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, apply_factory_merges
from megatron.core.dist_checkpointing.state_dict_utils import load_preprocess
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelLoadStrategyWrapper
from megatron.core.dist_checkpointing.utils import extract_sharded_base, force_all_tensors_to_non_fp8
from torch import Tensor

from data_prep import InputError
from megatron_davinci.core.groups import sync_errors
from megatron_davinci.weights.common_state import common_state
from megatron_davinci.weights.stored_chunks import ChunkedTensor, StoredCheckpoint, StoredChunk

_NO_STATE = "layernorm._extra_state"  # Transformer Engine's norms write an empty one, other layers none
_MAX_CHUNKS = 1_000  # that a rank's part of a tensor lies in; a layout has some tens


def load_state(wanted: dict[str, Any], directory: Path, replicas: dist.ProcessGroup | None = None) -> dict[str, Any]:
    """The common state of a checkpoint, and what `wanted` describes (a sharded state dict) in its place.

    All ranks call it together. With `replicas` each of these reads a part, and they exchange them through GPU memory.
    Raises InputError on every rank.
    """
    force_all_tensors_to_non_fp8(wanted)
    sharded, kept, factories = load_preprocess(wanted)
    sharded, _ = extract_sharded_base(sharded)
    with sync_errors():
        stored = StoredCheckpoint(directory)
        state = common_state(directory, stored=stored)
        _merge(state, kept, directory)
    reader: Any = _Reader(stored)
    if replicas is not None:
        reader = FullyParallelLoadStrategyWrapper(reader, replicas)
    loaded = reader.load(sharded, directory)
    with sync_errors():
        _merge(state, loaded, directory)
    return dict(apply_factory_merges(state, factories))


def _merge(state: dict[str, Any], more: Any, directory: Path) -> None:
    """Add to the common state what stands beside it. Raises InputError where both say something of one thing."""
    try:
        merge(state, more)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):  # the common state is anybody's
        raise InputError(f"{directory} has a common state that does not fit this run: copy it again") from None


class _Reader:
    """Stands where Megatron expects a LoadShardedStrategy."""

    can_handle_sharded_objects = True

    def __init__(self, stored: StoredCheckpoint) -> None:
        self._stored = stored

    def load(self, sharded: dict[Any, Any], _directory: Any, _async_strategy: str = "") -> Any:
        """Copy the dict, with data in place of what describes it. All ranks call it equally often."""
        with sync_errors():
            return dict_list_map_outplace(self._read, sharded)

    def _read(self, wanted: ShardedTensor | ShardedObject) -> Any:
        return self._read_tensor(wanted) if isinstance(wanted, ShardedTensor) else self._read_object(wanted)

    def _read_object(self, wanted: ShardedObject) -> Any:
        name = wanted.unique_key
        if name not in self._stored.objects and wanted.key.endswith(_NO_STATE):
            return torch.empty(0, dtype=torch.uint8)
        if name not in self._stored.objects:
            raise InputError(f"{self._stored.directory} has no {name}, which this model asks for")
        found = self._stored.read_object(name)
        if not isinstance(found, list) or len(found) != 1:  # Megatron lists what one rank saved under one name
            raise InputError(f"{self._stored.directory}: {name} was refused, it is no list of one object")
        return found[0]

    def _read_tensor(self, wanted: ShardedTensor) -> Tensor:
        name, found = wanted.key, self._stored.tensors.get(wanted.key)
        if found is None:
            raise InputError(f"{self._stored.directory} has no tensor {name}, which this model asks for")
        if found.shape != tuple(wanted.global_shape) and not wanted.allow_shape_mismatch:
            raise InputError(
                f"{self._stored.directory} has {name} of shape {list(found.shape)}, this model's is "
                f"{list(wanted.global_shape)}"
            )
        target = torch.zeros(wanted.local_shape, dtype=wanted.dtype) if wanted.data is None else wanted.data.detach()
        if wanted.allow_shape_mismatch:
            target.zero_()
        copied = copy_part(found, target[(None,) * wanted.prepend_axis_num], tuple(wanted.global_offset))
        if copied < target.numel() and not wanted.allow_shape_mismatch:
            raise InputError(
                f"{self._stored.directory / '.metadata'} has {copied} of {target.numel()} numbers of {name}"
            )
        return target


def copy_part(stored: ChunkedTensor, target: Tensor, offsets: tuple[int, ...]) -> int:
    """Fill `target`, the part of a stored tensor that begins at `offsets`; returns how many numbers were found."""
    found = []
    for chunk in stored.chunks:
        overlap = [_overlap(chunk, axis, offset, target.size(axis)) for axis, offset in enumerate(offsets)]
        if all(begin < end for begin, end in overlap):
            found.append((chunk, overlap))
    if len(found) > _MAX_CHUNKS or any(_over_each_other(a, b) for (_, a), (_, b) in combinations(found, 2)):
        raise InputError(
            f"a tensor of shape {list(stored.shape)} has chunks over each other, or more than {_MAX_CHUNKS:,}: copy "
            "the checkpoint again"
        )
    for chunk, overlap in found:
        here = tuple(slice(b - at, e - at) for (b, e), at in zip(overlap, offsets, strict=True))
        there = tuple(slice(b - at, e - at) for (b, e), at in zip(overlap, chunk.offsets, strict=True))
        target[here].copy_(chunk.tensor()[there])
    return sum(math.prod(end - begin for begin, end in overlap) for _, overlap in found)


def _over_each_other(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> bool:
    return all(a < d and c < b for (a, b), (c, d) in zip(one, other, strict=True))


def _overlap(chunk: StoredChunk, axis: int, offset: int, length: int) -> tuple[int, int]:
    """Where the part of a chunk that is wanted begins and ends, along one dimension of the whole tensor."""
    first, size = chunk.offsets[axis], chunk.sizes[axis]
    return max(first, offset), min(first + size, offset + length)
