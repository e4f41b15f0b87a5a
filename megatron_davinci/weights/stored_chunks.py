"""What a torch_dist checkpoint holds, and where: tensors in chunks of any number of dimensions, objects beside them.

Files are mapped when they are first read. What `.metadata` says is checked before anything is read.
"""

import math
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from data_prep import InputError
from data_prep.io.files import check_regular_file, refuse_link_outside
from megatron_davinci.weights.metadata import MetadataIndex, StorageInfo, TensorStorageMetadata, read_metadata
from megatron_davinci.weights.safe_pickle import RefusedPickleError
from megatron_davinci.weights.torch_objects import read_object
from megatron_davinci.weights.torch_zip import find_data

_PLAIN_NAME = re.compile(r"[ -.0-~]{1,255}")  # what can be printed, without a slash
Read = Callable[[BinaryIO, int, int], Any]


class MappedFile:
    """A file's bytes, mapped when they are first asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def bytes(self) -> Any:
        """An array (size,) uint8."""
        if not self.path.is_file() or not self.path.stat().st_size:
            raise InputError(f"{self.path} does not exist, or is empty: the checkpoint is not whole")
        return np.memmap(
            refuse_link_outside(self.path), np.uint8, "c"
        )  # never written to; torch wants a map that could be


@dataclass
class StoredChunk:
    """A part of a tensor, `sizes` from `offsets` on per dimension, in an archive of a file."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    dtype: torch.dtype
    file: MappedFile
    start: int
    length: int
    _first: int | None = field(default=None, repr=False)

    def first_byte(self) -> int:
        """Where its elements begin in the file; they are checked against their CRC-32 the first time."""
        if self._first is None:
            data = self.file.bytes
            at, _, crc = find_data(self.file.path, self.start, self.length, self.sizes, self.dtype)
            elements = data[at : at + self._num_bytes]
            if len(elements) < self._num_bytes:
                raise InputError(f"{self.file.path} ends within a tensor at byte {at}: copy it again")
            if crc and zlib.crc32(elements) != crc:
                raise InputError(
                    f"{self.file.path} is altered between bytes {at} and {at + len(elements)}: copy it again"
                )
            self._first = at
        return self._first

    def tensor(self) -> Tensor:
        """The elements (sizes) of the chunk: a view of the file."""
        first = self.first_byte()
        return torch.from_numpy(self.file.bytes[first : first + self._num_bytes]).view(self.dtype).view(self.sizes)

    @property
    def _num_bytes(self) -> int:
        return math.prod(self.sizes) * self.dtype.itemsize


@dataclass(frozen=True)
class ChunkedTensor:
    """A tensor in chunks, which lie inside its shape; whether they make it up is not checked."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: list[StoredChunk]


class StoredCheckpoint:
    """The tensors and objects of a torch_dist checkpoint by their names in `.metadata`. Raises InputError."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        metadata = read_metadata(directory / ".metadata")
        self._places = {_key(index): info for index, info in metadata.storage_data.items()}
        if len({(info.relative_path, info.offset) for info in self._places.values()}) < len(self._places):
            raise InputError(f"{directory / '.metadata'} has two things in one place: it was refused")
        names = {info.relative_path for info in self._places.values()}
        if not all(map(is_plain_name, names)):
            raise InputError(f"{directory / '.metadata'} names files outside the checkpoint: it was refused")
        self._files = {name: MappedFile(directory / name) for name in names}
        entries = metadata.state_dict_metadata
        self.tensors: Mapping[str, ChunkedTensor] = {
            name: self._tensor(name, entry)
            for name, entry in entries.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        self.objects = frozenset(entries) - self.tensors.keys()

    def read_object(self, name: str, read: Read = read_object) -> Any:
        """An object by its name in `objects`, rebuilt by a function of `torch_objects`."""
        info = self._place(name, ())
        check_regular_file(self.directory / info.relative_path)
        try:
            with (self.directory / info.relative_path).open("rb") as file:
                return read(file, info.offset, info.length)
        except RefusedPickleError as error:
            raise InputError(f"{self.directory / info.relative_path}: {name} was refused, {error}") from None

    def _tensor(self, name: str, entry: TensorStorageMetadata) -> ChunkedTensor:
        shape, dtype, chunks = entry.size, entry.properties.dtype, []
        for chunk in entry.chunks:
            inside = len(chunk.offsets) == len(chunk.sizes) == len(shape) and all(
                0 < size <= whole - at for at, size, whole in zip(chunk.offsets, chunk.sizes, shape, strict=True)
            )
            if not inside:
                raise InputError(
                    f"{self.directory / '.metadata'} has a chunk of {name} outside its shape {list(shape)}"
                )
            info = self._place(name, chunk.offsets)
            file = self._files[info.relative_path]
            chunks.append(StoredChunk(chunk.offsets, chunk.sizes, dtype, file, info.offset, info.length))
        return ChunkedTensor(shape, dtype, chunks)

    def _place(self, name: str, offsets: tuple[int, ...]) -> StorageInfo:
        info = self._places.get((name, repr(offsets)))
        if info is None:
            raise InputError(f"{self.directory / '.metadata'} does not say where {name} at {list(offsets)} lies")
        return info


def is_plain_name(name: Any) -> bool:
    """True for a name that can only be a file in the very directory where it is looked for."""
    return isinstance(name, str) and bool(_PLAIN_NAME.fullmatch(name)) and name not in (".", "..")


def _key(index: MetadataIndex) -> tuple[str, str]:
    """A place as text, whose hash nobody can choose as one can those of numbers."""
    return index.fqn, repr(tuple(index.offset or ()))
