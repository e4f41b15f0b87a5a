"""Tensors on disk as rows, whatever file they lie in; and where they lie in a torch_dist checkpoint.

Files are mapped, never read whole: what is held is the slice that is asked for.
"""

import math
import re
import zlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data_prep import InputError
from megatron_davinci.checkpoint.blobs import find_data
from megatron_davinci.checkpoint.metadata import MetadataIndex, StorageInfo, TensorStorageMetadata, read_metadata

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}  # as safetensors has them
_STACKED = "decoder.layers."
_MOST_LAYERS = 10_000
_LAYER_NUMBER = re.compile(r"decoder\.layers\.\d+\.")


class MappedFile:
    """A file's bytes, mapped when they are first asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def bytes(self) -> Any:
        """An array (size,) uint8."""
        if not self.path.is_file() or not self.path.stat().st_size:
            raise InputError(f"{self.path} does not exist, or is empty: the checkpoint is not whole")
        return np.memmap(self.path, np.uint8, "c")  # never written to; torch wants a map that could be


class Piece(NamedTuple):
    """A rectangle of a tensor, contiguous in a file from byte `offset`; found when it is first read."""

    file: MappedFile
    offset: Callable[[], int]
    row: int
    column: int
    rows: int
    columns: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of one or two dimensions in pieces; one of one dimension has a column."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: list[Piece] = field(default_factory=list)

    @property
    def columns(self) -> int:
        """Elements of a row."""
        return self.shape[1] if len(self.shape) > 1 else 1

    def read(self, start: int, stop: int) -> Tensor:
        """Rows (stop - start, columns): a view of the file where they lie in one piece, else put together."""
        found = [piece for piece in self.pieces if piece.row < stop and start < piece.row + piece.rows]
        if len(found) == 1 and found[0].columns == self.columns:
            return self._rows_of(found[0], start, stop)
        rows = torch.empty(stop - start, self.columns, dtype=self.dtype)
        for piece in found:
            first, last = max(start, piece.row), min(stop, piece.row + piece.rows)
            part = self._rows_of(piece, first, last)
            rows[first - start : last - start, piece.column : piece.column + piece.columns] = part
        return rows

    def _rows_of(self, piece: Piece, start: int, stop: int) -> Tensor:
        width = piece.columns * self.dtype.itemsize
        first = piece.offset() + (start - piece.row) * width
        data = torch.from_numpy(piece.file.bytes[first : first + (stop - start) * width])
        return data.view(self.dtype).view(stop - start, piece.columns)

    def covered(self) -> bool:
        """Whether the pieces have every element, each once: as many, all inside, and no two over each other."""
        rows = self.shape[0]
        inside = all(
            min(piece.row, piece.column) >= 0
            and piece.row + piece.rows <= rows
            and piece.column + piece.columns <= self.columns
            for piece in self.pieces
        )
        as_many = sum(piece.rows * piece.columns for piece in self.pieces) == rows * self.columns
        return inside and as_many and not any(_overlap(a, b) for a, b in combinations(self.pieces, 2))


def _overlap(one: Piece, other: Piece) -> bool:
    return (
        one.row < other.row + other.rows
        and other.row < one.row + one.rows
        and one.column < other.column + other.columns
        and other.column < one.column + one.columns
    )


def is_plain_name(name: Any) -> bool:
    """Whether it can only name a file in the very directory where it is looked for."""
    return isinstance(name, str) and bool(name) and Path(name).name == name


def megatron_tensors(directory: Path) -> dict[str, StoredTensor]:
    """The model's tensors of a torch_dist checkpoint by name, one for each layer, stacked or not in the file.

    What begins with "optimizer." and what is no tensor is left out; a leading "model." or "module." is taken off.
    """
    try:
        return _megatron_tensors(directory)
    except InputError:
        raise
    except (AttributeError, TypeError, ValueError, IndexError, KeyError) as error:  # its fields are anybody's
        raise InputError(f"{directory / '.metadata'} is damaged ({error!r}): copy the checkpoint again") from None


def _megatron_tensors(directory: Path) -> dict[str, StoredTensor]:
    metadata = read_metadata(directory / ".metadata")
    places: dict[tuple[str, tuple[int, ...]], StorageInfo] = {}
    for index, info in metadata.storage_data.items():
        places[_key(index)] = info
    names = {info.relative_path for info in places.values()}
    if not all(map(is_plain_name, names)):
        raise InputError(f"{directory / '.metadata'} names files outside the checkpoint: it was refused")
    files = {name: MappedFile(directory / name) for name in names}
    found: dict[str, StoredTensor] = {}
    for full_name, entry in metadata.state_dict_metadata.items():
        name = full_name.removeprefix("model.").removeprefix("module.")
        if not isinstance(entry, TensorStorageMetadata) or name.startswith(("optimizer.", "chained_")):
            continue
        for layer, tensor in _layers(files, full_name, entry, places, directory).items():
            key = name if layer is None else name.replace(_STACKED, f"{_STACKED}{layer}.", 1)
            if key in found:
                raise InputError(f"{directory} holds {key} twice, once as {full_name}: it must hold it once")
            found[key] = tensor
    return found


def _key(index: MetadataIndex) -> tuple[str, tuple[int, ...]]:
    return index.fqn, tuple(index.offset or ())


def _layers(
    files: dict[str, MappedFile],
    name: str,
    entry: TensorStorageMetadata,
    places: dict[tuple[str, tuple[int, ...]], StorageInfo],
    directory: Path,
) -> dict[int | None, StoredTensor]:
    """A tensor by layer; {None: tensor} where it is of no layer, or of one that its name says."""
    stacked = _STACKED in name and not _LAYER_NUMBER.search(name)
    shape, dtype = tuple(entry.size), entry.properties.dtype
    inner = shape[1:] if stacked else shape
    if not 1 <= len(inner) <= 2 or dtype not in DTYPE_NAMES or (stacked and shape[0] > _MOST_LAYERS):
        raise InputError(f"{directory}: {name} has type {dtype} and shape {list(shape)}, as no parameter of a GPT has")
    found: dict[int | None, StoredTensor] = defaultdict(lambda: StoredTensor(inner, dtype))
    for chunk in entry.chunks:
        offsets, sizes = tuple(chunk.offsets), tuple(chunk.sizes)
        if not all(at >= 0 and 0 < size <= whole - at for at, size, whole in zip(offsets, sizes, shape, strict=True)):
            raise InputError(f"{directory / '.metadata'} has a chunk of {name} outside its shape {list(shape)}")
        info = places.get((name, offsets))
        if info is None:
            raise InputError(f"{directory / '.metadata'} does not say where {name} at {list(offsets)} lies")
        place = _Place(files[info.relative_path], info.offset, info.length, sizes, dtype)
        for number in range(sizes[0] if stacked else 1):
            row, column = (*(offsets[1:] if stacked else offsets), 0)[:2]
            rows, columns = (*(sizes[1:] if stacked else sizes), 1)[:2]
            layer = offsets[0] + number if stacked else None
            skipped = number * rows * columns * dtype.itemsize
            found[layer].pieces.append(Piece(place.file, place.after(skipped), row, column, rows, columns))
    return dict(found)


@dataclass
class _Place:
    """A chunk's archive; when its elements are first read, they are looked up, and checked against their CRC-32."""

    file: MappedFile
    start: int
    length: int
    sizes: tuple[int, ...]
    dtype: torch.dtype
    _found: int | None = None

    def after(self, skipped: int) -> Callable[[], int]:
        """Gives the byte that many bytes behind the first element."""
        return lambda: self._data() + skipped

    def _data(self) -> int:
        if self._found is None:
            data = self.file.bytes
            at, crc = find_data(self.file.path, self.start, self.length, self.sizes, self.dtype)
            elements = data[at : at + math.prod(self.sizes) * self.dtype.itemsize]
            if len(elements) < math.prod(self.sizes) * self.dtype.itemsize:
                raise InputError(f"{self.file.path} ends within a tensor at byte {at}: copy it again")
            if crc and zlib.crc32(elements) != crc:
                raise InputError(
                    f"{self.file.path} is altered between bytes {at} and {at + len(elements)}: copy it again"
                )
            self._found = at
        return self._found
