"""What a conversion writes: tensors as stretches of rows out of other tensors, in slices of bounded size."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data_prep import InputError
from megatron_davinci.models import families
from megatron_davinci.models.config import ModelConfig
from megatron_davinci.weights.stored_tensors import StoredTensor

SLICE_BYTES = 32 << 20  # of fp32: read, put together, and changed in type, each worker holds three at most


class RowSlice(NamedTuple):
    """`length` rows from `start` of a tensor; of none: zeros."""

    source: StoredTensor | None
    start: int
    length: int


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to write. `layer`: its place in a tensor of all layers, None where there is none; `written_as`: its type
    there, None for the one that it is stored in."""

    name: str
    shape: tuple[int, ...]
    row_slices: Sequence[RowSlice]
    layer: int | None = None
    written_as: torch.dtype | None = None

    @property
    def full_name(self) -> str:
        """The name with the number of the layer in it."""
        return self.name if self.layer is None else self.name.replace("layers.", f"layers.{self.layer}.", 1)

    @property
    def dtype(self) -> torch.dtype:
        """The type in which the source stores it."""
        return next(source.dtype for source, _, _ in self.row_slices if source is not None)

    @property
    def written(self) -> torch.dtype:
        """The type in which it is written."""
        return self.written_as or self.dtype

    @property
    def num_elements(self) -> int:
        """Rows times columns."""
        return int(torch.Size(self.shape).numel())

    @property
    def num_bytes(self) -> int:
        """Bytes of the elements as they are written."""
        return self.num_elements * self.written.itemsize

    def read(self, start: int, stop: int) -> Tensor:
        """Rows (stop - start, columns)."""
        parts, at = [], 0
        for source, first, length in self.row_slices:
            begin, end = max(start, at), min(stop, at + length)
            if begin < end and source is not None:
                parts.append(source.read(first + begin - at, first + end - at))
            elif begin < end:
                parts.append(torch.zeros(end - begin, self._columns, dtype=self.dtype))
            at += length
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def whole(self) -> Tensor:
        """Read the whole tensor."""
        return self.read(0, self.shape[0]).view(self.shape)

    def slices(self) -> Iterator[Tensor]:
        """Read the tensor in rows (some, columns), at most SLICE_BYTES at a time."""
        at_once = max(1, SLICE_BYTES // (self._columns * 4))
        for start in range(0, self.shape[0], at_once):
            yield self.read(start, min(start + at_once, self.shape[0]))

    def pieces(self) -> Iterator[Any]:
        """The bytes of its elements in order, as buffers. Raises InputError for numbers that are not finite."""
        for rows in self.slices():
            if rows.dtype.is_floating_point and not _is_finite(rows):
                raise InputError(f"{self.full_name} holds NaN or infinite numbers: convert weights that are whole")
            changed = rows.to(self.written)
            if changed.dtype == torch.float16 != rows.dtype and changed.isinf().sum() != rows.isinf().sum():
                raise InputError(f"{self.full_name} has numbers that fp16 cannot hold: take bf16 or fp32")
            yield changed.contiguous().view(torch.uint8).numpy().reshape(-1).data

    @property
    def _columns(self) -> int:
        return self.shape[1] if len(self.shape) > 1 else 1


def _is_finite(rows: Tensor) -> bool:
    """Whether all numbers are; their sum tells at a fraction of the cost, unless it overflows itself."""
    return bool(rows.sum(dtype=torch.float32).isfinite()) or bool(rows.isfinite().all())


def plan_huggingface(tensors: Mapping[str, StoredTensor], model: ModelConfig, origin: Path) -> list[PlannedTensor]:
    """Hugging Face's tensors out of Megatron's, layer by layer. Raises InputError where they do not fit the model."""
    needed: set[str] = set()
    planned = []
    for mapping, layer in _by_layer(model):
        name = _numbered(mapping.megatron, layer)
        needed.add(name)
        source = _take(tensors, name, mapping.megatron_shape(model), origin, _least_rows(mapping, model))
        for part, (hf, shape) in enumerate(zip(mapping.hf, mapping.hf_shapes(model), strict=True)):
            row_ranges = sorted(
                (rows for rows in mapping.row_ranges(model) if rows.part == part), key=lambda rows: rows.hf_row
            )
            row_slices = [RowSlice(source, rows.megatron_row, rows.length) for rows in row_ranges]
            planned.append(PlannedTensor(_numbered(hf, layer), shape, row_slices))
    _refuse_others(tensors, needed, origin)
    return planned


def plan_megatron(tensors: Mapping[str, StoredTensor], model: ModelConfig, origin: Path) -> list[PlannedTensor]:
    """Megatron's tensors out of Hugging Face's; those of layers by their name without the number."""
    needed: set[str] = set()
    planned = []
    for mapping, layer in _by_layer(model):
        names = [_numbered(hf, layer) for hf in mapping.hf]
        needed |= set(names)
        shapes = mapping.hf_shapes(model)
        sources = [_take(tensors, name, shape, origin) for name, shape in zip(names, shapes, strict=True)]
        row_slices = [RowSlice(sources[rows.part], rows.hf_row, rows.length) for rows in mapping.row_ranges(model)]
        shape = mapping.megatron_shape(model)
        missing = shape[0] - sum(row_slice.length for row_slice in row_slices)
        if missing:
            row_slices.append(RowSlice(None, 0, missing))
        planned.append(PlannedTensor(mapping.megatron.replace("layers.*.", "layers."), shape, row_slices, layer))
    _refuse_others(tensors, needed, origin)
    return planned


def plan_copy(tensors: Mapping[str, StoredTensor], model: ModelConfig, origin: Path) -> list[PlannedTensor]:
    """Megatron's tensors as they are, but for the rows beyond the vocabulary: another program may have other ones."""
    needed: set[str] = set()
    planned = []
    for mapping, layer in _by_layer(model):
        name, shape = _numbered(mapping.megatron, layer), mapping.megatron_shape(model)
        needed.add(name)
        source = _take(tensors, name, shape, origin, _least_rows(mapping, model))
        rows = model.vocab_size if mapping.padded else shape[0]
        row_slices = [RowSlice(source, 0, rows), RowSlice(None, 0, shape[0] - rows)]
        planned.append(PlannedTensor(mapping.megatron.replace("layers.*.", "layers."), shape, row_slices, layer))
    _refuse_others(tensors, needed, origin)
    return planned


def plan_whole(name: str, tensor: StoredTensor) -> PlannedTensor:
    """A tensor as it is."""
    return PlannedTensor(name, tensor.shape, [RowSlice(tensor, 0, tensor.shape[0])])


def same_numbers(one: PlannedTensor, other: PlannedTensor) -> bool:
    """Bit for bit, in slices."""
    return (
        one.shape == other.shape
        and one.dtype == other.dtype
        and all(
            a.view(torch.uint8).equal(b.view(torch.uint8)) for a, b in zip(one.slices(), other.slices(), strict=True)
        )
    )


def _by_layer(model: ModelConfig) -> Iterator[tuple[families.Mapping, int | None]]:
    """Mappings in the order of the model: what comes before the layers, each layer, what comes after."""
    mappings = model.mappings
    of_layers = [mapping for mapping in mappings if "*" in mapping.megatron]
    first = mappings.index(of_layers[0])
    yield from ((mapping, None) for mapping in mappings[:first])
    yield from ((mapping, layer) for layer in range(model.num_layers) for mapping in of_layers)
    yield from ((mapping, None) for mapping in mappings[first:] if "*" not in mapping.megatron)


def _numbered(name: str, layer: int | None) -> str:
    return name if layer is None else name.replace("*", str(layer))


def _least_rows(mapping: families.Mapping, model: ModelConfig) -> int | None:
    """Rows that Megatron's tensor has at least, where other programs pad the vocabulary to other sizes."""
    return model.vocab_size if mapping.padded else None


def _take(
    tensors: Mapping[str, StoredTensor],
    name: str,
    shape: tuple[int, ...],
    origin: Path,
    least_rows: int | None = None,
) -> StoredTensor:
    if name not in tensors:
        if f"{name}_w" in tensors:
            raise InputError(
                f"{origin} has {name} in two parts (singleton_local_shards), which is not known here: save it without"
            )
        raise InputError(f"{origin} has no tensor {name}, which its config.json asks for")
    found = tensors[name]
    padded = least_rows is not None and found.shape[0] >= least_rows and found.shape[1:] == shape[1:]
    if found.shape != shape and not padded:
        raise InputError(f"{origin}: {name} has the shape {list(found.shape)}, its config.json says {list(shape)}")
    if not found.covered():
        raise InputError(f"{origin}: the chunks of {name} do not make up its shape {list(found.shape)}")
    return found


def _refuse_others(tensors: Mapping[str, StoredTensor], needed: set[str], origin: Path) -> None:
    others = sorted(name for name in tensors if name not in needed)
    if others:
        raise InputError(f"{origin} has a tensor {others[0]} that its config.json has no place for")
