"""The bytes of one tensor inside a .distcp file: a zip archive as torch.save writes it, read and written in place."""

import io
import pickle
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch

from data_prep import InputError

_DATA, _RECORD = "archive/data/0", "archive/data.pkl"
_LOCAL_HEADER = struct.Struct("<26xHH")  # lengths of the name and of the extra field, at the end of 30 bytes
_ALIGNMENT = 64  # of the data in its file, as torch.save has it
_STORAGES = {
    torch.float32: "FloatStorage",
    torch.bfloat16: "BFloat16Storage",
    torch.float16: "HalfStorage",
    torch.float64: "DoubleStorage",
}


def find_data(path: Path, start: int, length: int, data_bytes: int) -> int:
    """Where in a file the elements of a tensor begin whose archive lies at `start`, `length` bytes long.

    Raises InputError where there is no such archive, or it does not hold one plain tensor of `data_bytes`.
    """
    with path.open("rb") as file:
        try:
            archive = zipfile.ZipFile(_Window(file, start, length))
            names = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
            entry = names["data/0"]
        except (zipfile.BadZipFile, KeyError, OSError):
            raise InputError(f"{path} holds no tensor at byte {start}: it is cut off or altered") from None
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != data_bytes:
            raise InputError(
                f"{path} holds {entry.file_size} bytes of a tensor at byte {start}, its metadata says {data_bytes}"
            )
        file.seek(start + entry.header_offset)
        name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        return start + entry.header_offset + _LOCAL_HEADER.size + int(name) + int(extra)


class Sink(Protocol):
    """Where bytes go, in their order."""

    position: int

    def write(self, data: Any) -> int:
        """Append; returns how many."""


def write_tensor(sink: Sink, shape: tuple[int, ...], dtype: torch.dtype, pieces: Iterable[Any]) -> tuple[int, int]:
    """Append a tensor as torch.save would, from buffers of its elements in order; gives its start and its length."""
    numel = 1
    for size in shape:
        numel *= size
    start = sink.position
    growing: Any = _Unseekable(sink)
    with zipfile.ZipFile(growing, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_entry(_RECORD), _record(shape, dtype, numel))
        archive.writestr(_entry("archive/byteorder"), b"little")
        entry = _entry(_DATA)
        entry.extra = _padding(sink.position + 30 + len(_DATA))
        with archive.open(entry, "w", force_zip64=numel * dtype.itemsize >= 1 << 31) as data:
            for piece in pieces:
                data.write(piece)
        archive.writestr(_entry("archive/version"), b"3\n")
    return start, sink.position - start


def object_bytes() -> bytes:
    """What Megatron keeps where a layer has no state beside its tensors: a list of None."""
    buffer = io.BytesIO()
    torch.save([None], buffer)
    return buffer.getvalue()


def _record(shape: tuple[int, ...], dtype: torch.dtype, numel: int) -> bytes:
    """data.pkl of a contiguous tensor on the CPU whose elements are archive/data/0."""
    stride, strides = 1, []
    for size in reversed(shape):
        strides.append(stride)
        stride *= size
    buffer = io.BytesIO()
    pickler = _TensorPickler(buffer, protocol=2)
    pickler.storage = ("storage", getattr(torch, _STORAGES[dtype]), "0", "cpu", numel)
    pickler.dump(_Plain(shape, tuple(reversed(strides))))
    return buffer.getvalue()


class _Storage:
    """Stands for the elements."""


class _Plain:
    """Pickles as torch does a tensor."""

    def __init__(self, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self._arguments: tuple[Any, ...] = (_Storage(), 0, shape, strides, False, {})

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor_v2, self._arguments


class _TensorPickler(pickle.Pickler):
    storage: tuple[Any, ...]

    def persistent_id(self, obj: Any) -> Any:
        return self.storage if isinstance(obj, _Storage) else None


def _entry(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(name)  # with the same date always: the same tensors give the same file


def _padding(position: int) -> bytes:
    """An extra field ("FB", as torch names it) that aligns what follows the header."""
    missing = -(position + 4) % _ALIGNMENT
    return b"FB" + struct.pack("<H", missing) + b"Z" * missing


class _Window:
    """A part of a file as a file of its own."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file, self._start, self._length, self._at = file, start, length, 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._length)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        size = self._length - self._at if size < 0 else min(size, self._length - self._at)
        self._file.seek(self._start + self._at)
        data = self._file.read(max(0, size))
        self._at += len(data)
        return data


class _Unseekable:
    """A sink as zipfile wants one that only grows: sizes and checksums then follow the data."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def write(self, data: Any) -> int:
        return self._sink.write(data)

    def flush(self) -> None: ...
