"""Where the tensors of a Hugging Face directory lie; everything in a header is checked before it is used."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from data_prep import InputError
from data_prep.io.files import read_json, refuse_link_outside
from megatron_davinci.weights.stored_chunks import MappedFile, is_plain_name
from megatron_davinci.weights.stored_tensors import DTYPES, Piece, StoredTensor

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_HEADER_LIMIT = 100_000_000  # bytes; the library's own


class _Entry(NamedTuple):
    """A tensor of a header: bytes `begin` to `end` of the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def huggingface_tensors(directory: Path) -> dict[str, StoredTensor]:
    """By name. Raises InputError where a file is missing, cut off, or holds what is no floating-point tensor."""
    if (directory / _INDEX).is_file() and (directory / _SINGLE).is_file():
        raise InputError(f"{directory} has both {_SINGLE} and {_INDEX}: remove the one that is not meant")
    if (directory / _INDEX).is_file():
        weight_map = _weight_map(directory / _INDEX)
    elif (directory / _SINGLE).is_file():
        weight_map = dict.fromkeys(_read_header(directory / _SINGLE)[0], _SINGLE)
    else:
        raise InputError(f"{directory} has no {_SINGLE} and no {_INDEX}: give a Hugging Face directory with weights")
    found = {}
    for file in sorted(set(weight_map.values())):
        header, start = _read_header(directory / file)
        mapped = MappedFile(directory / file)
        for name, entry in header.items():
            if weight_map.get(name) == file:
                found[name] = _tensor(mapped, name, entry, start)
    missing = [name for name in weight_map if name not in found]
    if missing:
        raise InputError(f"{directory / weight_map[missing[0]]} lacks {missing[0]}, which the index says it holds")
    return found


def _weight_map(path: Path) -> dict[str, str]:
    index = read_json(path)
    found = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(found, dict) or not all(map(is_plain_name, found.values())):
        raise InputError(f"{path} has no weight_map of names of files beside it: copy it again")
    return found


def _read_header(path: Path) -> tuple[dict[str, _Entry], int]:
    """Entries by name, and where the data begins."""
    if not path.is_file():
        raise InputError(f"{path} does not exist: the index names it")
    size = refuse_link_outside(path).stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_HEADER_LIMIT, size - 8):
            raise InputError(f"{path} is no safetensors file, or cut off: copy it again")
        try:
            header = json.loads(file.read(length), object_pairs_hook=_without_doubles)
            header.pop("__metadata__", None)
            entries = {name: _entry(**entry) for name, entry in header.items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise InputError(f"{path} has a damaged header: copy it again") from None
    ends = sorted((entry.begin, entry.end) for entry in entries.values())
    needed = 8 + length + (ends[-1][1] if ends else 0)
    if needed != size:
        raise InputError(f"{path} has {size} bytes, its header says {needed}: copy it again")
    if ends and (ends[0][0] != 0 or any(one[1] != other[0] for one, other in pairwise(ends))):
        raise InputError(f"{path} has a header whose tensors do not follow each other: copy it again")
    return entries, 8 + length


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ValueError for a name twice."""
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError
    return dict(pairs)


def _entry(dtype: Any, shape: Any, data_offsets: Any) -> _Entry:
    """Raises ValueError or TypeError for what is none."""
    begin, end = data_offsets
    numbers = [*shape, begin, end]
    if not isinstance(dtype, str) or not all(type(number) is int and number >= 0 for number in numbers) or end < begin:
        raise ValueError
    return _Entry(dtype, tuple(shape), begin, end)


def _tensor(file: MappedFile, name: str, entry: _Entry, start: int) -> StoredTensor:
    if entry.dtype not in DTYPES or not 1 <= len(entry.shape) <= 2:
        raise InputError(
            f"{file.path}: {name} has type {entry.dtype} and shape {list(entry.shape)}; converted are matrices and "
            f"vectors of {', '.join(DTYPES)}"
        )
    tensor = StoredTensor(entry.shape, DTYPES[entry.dtype])
    held = entry.end - entry.begin
    if held != entry.shape[0] * tensor.columns * tensor.dtype.itemsize:
        raise InputError(f"{file.path}: {name} has {held} bytes, which its shape {list(entry.shape)} does not need")
    tensor.pieces.append(Piece(file, lambda: start + entry.begin, 0, 0, entry.shape[0], tensor.columns))
    return tensor
