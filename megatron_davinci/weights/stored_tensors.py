"""Tensors on disk as rows, whatever file they lie in; and those of a model in a torch_dist checkpoint.

Files are mapped, never read whole: what is held is the slice that is asked for.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data_prep import InputError
from megatron_davinci.weights.stored_chunks import ChunkedTensor, MappedFile, StoredCheckpoint, StoredChunk

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}  # as safetensors has them
_STACKED = "decoder.layers."
_LAYER_NUMBER = re.compile(r"decoder\.layers\.\d+\.")
_MAX_LAYERS = 10_000
_MAX_PIECES = 500_000  # of a checkpoint; one of 72B on eight tensor ranks has 8,320
_MAX_CELLS = 1 << 24


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
        """Whether the pieces have every element, each once: all inside, as many, and no two over each other."""
        inside = all(
            min(piece.row, piece.column) >= 0
            and piece.row + piece.rows <= self.shape[0]
            and piece.column + piece.columns <= self.columns
            for piece in self.pieces
        )
        as_many = sum(piece.rows * piece.columns for piece in self.pieces) == self.shape[0] * self.columns
        return inside and as_many and not self._overlapping()

    def _overlapping(self) -> bool:
        """On a grid that all edges of the pieces draw, no cell is in two of them: one look at each cell."""
        rows = _edges((piece.row, piece.row + piece.rows) for piece in self.pieces)
        columns = _edges((piece.column, piece.column + piece.columns) for piece in self.pieces)
        if len(rows) * len(columns) > _MAX_CELLS:
            raise InputError(f"a tensor of shape {list(self.shape)} is cut into {len(self.pieces):,} odd pieces")
        taken = np.zeros((len(rows), len(columns)), bool)
        for piece in self.pieces:
            cells = taken[
                rows[piece.row] : rows[piece.row + piece.rows],
                columns[piece.column] : columns[piece.column + piece.columns],
            ]
            if cells.any():
                return True
            cells[:] = True
        return False


def _edges(ends: Iterable[tuple[int, int]]) -> dict[int, int]:
    """The number of each edge, in their order."""
    return {edge: number for number, edge in enumerate(sorted({edge for pair in ends for edge in pair}))}


def megatron_tensors(directory: Path) -> dict[str, StoredTensor]:
    """The model's tensors of a torch_dist checkpoint by name, one for each layer, stacked or not in the file.

    What begins with "optimizer." and what is no tensor is left out; a leading "model." or "module." is taken off.
    """
    found: dict[str, StoredTensor] = {}
    pieces = 0
    for full_name, entry in StoredCheckpoint(directory).tensors.items():
        name = full_name.removeprefix("model.").removeprefix("module.")
        if name.startswith(("optimizer.", "chained_")):
            continue
        is_stacked = _STACKED in name and not _LAYER_NUMBER.search(name)
        _check_form(full_name, entry, is_stacked, directory)
        pieces += sum(chunk.sizes[0] if is_stacked else 1 for chunk in entry.chunks)
        if pieces > _MAX_PIECES:
            raise InputError(f"{directory / '.metadata'} cuts its tensors into more than {_MAX_PIECES:,} pieces")
        for layer, tensor in _by_layer(entry, is_stacked).items():
            key = name if layer is None else name.replace(_STACKED, f"{_STACKED}{layer}.", 1)
            if key in found:
                raise InputError(f"{directory} holds {key} twice, once as {full_name}: it must hold it once")
            found[key] = tensor
    return found


def _check_form(name: str, entry: ChunkedTensor, is_stacked: bool, directory: Path) -> None:
    shape = list(entry.shape)
    too_many = is_stacked and bool(shape) and shape[0] > _MAX_LAYERS
    if not 1 <= len(shape) - is_stacked <= 2 or entry.dtype not in DTYPE_NAMES or too_many:
        raise InputError(f"{directory}: {name} has type {entry.dtype} and shape {shape}, as no parameter of a GPT has")


def _by_layer(entry: ChunkedTensor, is_stacked: bool) -> dict[int | None, StoredTensor]:
    """A tensor by layer; {None: tensor} where it is of no layer, or of one that its name says."""
    inner = entry.shape[is_stacked:]
    found: dict[int | None, StoredTensor] = defaultdict(lambda: StoredTensor(inner, entry.dtype))
    for chunk in entry.chunks:
        row, column = (*chunk.offsets[is_stacked:], 0)[:2]
        rows, columns = (*chunk.sizes[is_stacked:], 1)[:2]
        for number in range(chunk.sizes[0] if is_stacked else 1):
            layer = chunk.offsets[0] + number if is_stacked else None
            offset = _byte_of(chunk, number * rows * columns * entry.dtype.itemsize)
            found[layer].pieces.append(Piece(chunk.file, offset, row, column, rows, columns))
    return dict(found)


def _byte_of(chunk: StoredChunk, skipped: int) -> Callable[[], int]:
    return lambda: chunk.first_byte() + skipped
