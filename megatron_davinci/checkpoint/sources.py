"""Tensors on disk as rows, whatever file they lie in: safetensors, or chunks of a torch_dist checkpoint.

Files are mapped, never read whole: what is held is the slice that is asked for.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data_prep import InputError
from data_prep.files import read_json
from megatron_davinci.checkpoint.blobs import find_data
from megatron_davinci.checkpoint.metadata import MetadataIndex, StorageInfo, TensorStorageMetadata, read_metadata

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_HEADER_LIMIT = 100_000_000  # bytes; the library's own
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_STACKED = "decoder.layers."
_LAYER_NUMBER = re.compile(r"decoder\.layers\.\d+\.")


class Piece(NamedTuple):
    """A rectangle of a tensor, contiguous in a file from byte `offset`; found when it is first read."""

    path: Path
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
        data = torch.from_numpy(_mapped(piece.path)[first : first + (stop - start) * width])
        return data.view(self.dtype).view(stop - start, piece.columns)

    def covered(self) -> bool:
        """Whether the pieces have room for every element, each once."""
        rows = self.shape[0]
        return sum(piece.rows * piece.columns for piece in self.pieces) == rows * self.columns and all(
            piece.row + piece.rows <= rows and piece.column + piece.columns <= self.columns for piece in self.pieces
        )


@cache
def _mapped(path: Path) -> Any:
    return np.memmap(path, np.uint8, "c")  # never written to; torch wants a map that could be


def huggingface_tensors(directory: Path) -> dict[str, StoredTensor]:
    """By name. Raises InputError where a file is missing, cut off, or holds what is no floating-point tensor."""
    if (directory / _INDEX).is_file():
        weight_map = read_json(directory / _INDEX)["weight_map"]
    elif (directory / _SINGLE).is_file():
        weight_map = dict.fromkeys(_safetensors_header(directory / _SINGLE)[0], _SINGLE)
    else:
        raise InputError(f"{directory} has no {_SINGLE} and no {_INDEX}: give a Hugging Face directory with weights")
    found = {}
    for file in sorted(set(weight_map.values())):
        header, start = _safetensors_header(directory / file)
        for name, entry in header.items():
            if weight_map.get(name) == file:
                found[name] = _safetensor(directory / file, name, entry, start)
    missing = [name for name in weight_map if name not in found]
    if missing:
        raise InputError(f"{directory / weight_map[missing[0]]} lacks {missing[0]}, which the index says it holds")
    return found


def _safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """Entries by name, and where the data begins."""
    if not path.is_file():
        raise InputError(f"{path} does not exist: the index names it")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_HEADER_LIMIT, size - 8):
            raise InputError(f"{path} is no safetensors file, or cut off: copy it again")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            ends = [entry["data_offsets"][1] for entry in header.values()]
        except (ValueError, TypeError, KeyError, AttributeError, IndexError):
            raise InputError(f"{path} has a damaged header: copy it again") from None
    if 8 + length + max(ends, default=0) != size:
        raise InputError(f"{path} has {size} bytes, its header says {8 + length + max(ends, default=0)}: copy it again")
    return header, 8 + length


def _safetensor(path: Path, name: str, entry: dict[str, Any], start: int) -> StoredTensor:
    shape = tuple(entry["shape"])
    if entry["dtype"] not in _DTYPES or not 1 <= len(shape) <= 2:
        raise InputError(
            f"{path}: {name} has type {entry['dtype']} and shape {list(shape)}; what is converted are matrices and "
            f"vectors of {', '.join(_DTYPES)}"
        )
    begin, end = entry["data_offsets"]
    tensor = StoredTensor(shape, _DTYPES[entry["dtype"]])
    if end - begin != shape[0] * tensor.columns * tensor.dtype.itemsize:
        raise InputError(f"{path}: {name} has {end - begin} bytes, which its shape {list(shape)} does not need")
    tensor.pieces.append(Piece(path, lambda: start + begin, 0, 0, shape[0], tensor.columns))
    return tensor


def megatron_tensors(directory: Path) -> dict[str, StoredTensor]:
    """The model's tensors of a torch_dist checkpoint by name, one for each layer, stacked or not in the file.

    What begins with "optimizer." and what is no tensor is left out; a leading "model." or "module." is taken off.
    """
    metadata = read_metadata(directory / ".metadata")
    places: dict[tuple[str, tuple[int, ...]], StorageInfo] = {}
    for index, info in metadata.storage_data.items():
        places[_key(index)] = info
    found: dict[str, StoredTensor] = {}
    for full_name, entry in metadata.state_dict_metadata.items():
        name = full_name.removeprefix("model.").removeprefix("module.")
        if not isinstance(entry, TensorStorageMetadata) or name.startswith(("optimizer.", "chained_")):
            continue
        for layer, tensor in _layers(directory, full_name, entry, places).items():
            key = name if layer is None else name.replace(_STACKED, f"{_STACKED}{layer}.", 1)
            found[key] = tensor
    return found


def _key(index: MetadataIndex) -> tuple[str, tuple[int, ...]]:
    return index.fqn, tuple(index.offset or ())


def _layers(
    directory: Path, name: str, entry: TensorStorageMetadata, places: dict[tuple[str, tuple[int, ...]], StorageInfo]
) -> dict[int | None, StoredTensor]:
    """A tensor by layer; {None: tensor} where it is of no layer, or of one that its name says."""
    stacked = _STACKED in name and not _LAYER_NUMBER.search(name)
    shape, dtype = tuple(entry.size), entry.properties.dtype
    inner = shape[1:] if stacked else shape
    if not 1 <= len(inner) <= 2 or dtype not in DTYPE_NAMES:
        raise InputError(f"{directory}: {name} has type {dtype} and shape {list(shape)}, as no parameter of a GPT has")
    found: dict[int | None, StoredTensor] = defaultdict(lambda: StoredTensor(inner, dtype))
    for chunk in entry.chunks:
        offsets, sizes = tuple(chunk.offsets), tuple(chunk.sizes)
        info = places.get((name, offsets))
        if info is None:
            raise InputError(f"{directory / '.metadata'} does not say where {name} at {list(offsets)} lies")
        place = _Place(directory / info.relative_path, info.offset, info.length, sizes, dtype)
        for number in range(sizes[0] if stacked else 1):
            row, column = (*(offsets[1:] if stacked else offsets), 0)[:2]
            rows, columns = (*(sizes[1:] if stacked else sizes), 1)[:2]
            layer = offsets[0] + number if stacked else None
            skipped = number * rows * columns * dtype.itemsize
            found[layer].pieces.append(Piece(place.path, place.after(skipped), row, column, rows, columns))
    return dict(found)


@dataclass
class _Place:
    """A chunk's archive; where its elements begin is looked up once, when they are first read."""

    path: Path
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
            if not self.path.is_file():
                raise InputError(f"{self.path} does not exist: the checkpoint is not whole")
            data_bytes = int(np.prod(self.sizes, dtype=np.int64)) * self.dtype.itemsize
            self._found = find_data(self.path, self.start, self.length, data_bytes)
        return self._found
