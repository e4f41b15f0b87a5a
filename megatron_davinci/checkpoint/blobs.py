"""The bytes of one tensor inside a .distcp file: a zip archive as torch.save writes it, read and written in place."""

import io
import math
import pickle
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import torch

from data_prep import InputError

_DATA, _RECORD = "archive/data/0", "archive/data.pkl"
_RECORD_LIMIT = 1 << 20  # bytes; a tensor's is below a thousand
_LOCAL_HEADER = struct.Struct("<26xHH")  # lengths of the name and of the extra field, at the end of 30 bytes
_ALIGNMENT = 64  # of the data in its file, as torch.save has it
_STORAGES = {
    torch.float32: "FloatStorage",
    torch.bfloat16: "BFloat16Storage",
    torch.float16: "HalfStorage",
    torch.float64: "DoubleStorage",
}


class Data(NamedTuple):
    """Where in a file the elements of a tensor begin, and their CRC-32; 0 where torch was told to leave it out."""

    start: int
    crc: int


def find_data(path: Path, start: int, length: int, shape: tuple[int, ...], dtype: torch.dtype) -> Data:
    """The elements of a tensor whose archive lies at `start`, `length` bytes long.

    Raises InputError where there is no such archive, or it does not hold one contiguous tensor of that kind.
    """
    with path.open("rb") as file:
        try:
            archive = zipfile.ZipFile(_Window(file, start, length))
            entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
            entry, small = entries["data/0"], entries["data.pkl"]
            if small.compress_type != zipfile.ZIP_STORED or small.file_size > _RECORD_LIMIT:
                raise ValueError
            if not entry.CRC:
                del small.CRC  # which zipfile would expect it to have
            record = archive.read(small)
            file.seek(start + entry.header_offset)
            name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        except (zipfile.BadZipFile, KeyError, OSError, ValueError, EOFError, RuntimeError, struct.error):
            raise InputError(f"{path} holds no tensor at byte {start}: it is cut off or altered") from None
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != math.prod(shape) * dtype.itemsize:
            raise InputError(
                f"{path} holds {entry.file_size} bytes of a tensor at byte {start}, its metadata says "
                f"{math.prod(shape) * dtype.itemsize}"
            )
        if not _is_plain(record, shape, dtype):
            raise InputError(f"{path} holds no contiguous {dtype} tensor of shape {list(shape)} at byte {start}")
        return Data(start + entry.header_offset + _LOCAL_HEADER.size + int(name) + int(extra), entry.CRC)


def _is_plain(record: bytes, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether data.pkl, of which no code is run, rebuilds just that tensor out of its elements in their order."""
    try:
        storage, offset, size, strides, *_ = _RecordReader(io.BytesIO(record)).load()
    except Exception:  # a damaged pickle raises nearly anything
        return False
    given, expected = (
        [(length, stride) for length, stride in zip(lengths, steps, strict=True) if length != 1]
        for lengths, steps in ((size, strides), (shape, _contiguous(shape)))
    )
    return (storage[1], offset, given) == (_STORAGES.get(dtype), 0, expected)


class _RecordReader(pickle.Unpickler):
    """Gives the arguments of torch's function that rebuilds a tensor."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *arguments: arguments
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch" and name in _STORAGES.values():
            return name
        raise pickle.UnpicklingError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        return pid


class Sink(Protocol):
    """Where bytes go, in their order."""

    position: int

    def write(self, data: Any) -> int:
        """Append; returns how many."""


def write_tensor(sink: Sink, shape: tuple[int, ...], dtype: torch.dtype, pieces: Iterable[Any]) -> tuple[int, int]:
    """Append a tensor as torch.save would, from buffers of its elements in order; gives its start and its length."""
    numel, start = math.prod(shape), sink.position
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
    buffer = io.BytesIO()
    pickler = _TensorPickler(buffer, protocol=2)
    pickler.storage = ("storage", getattr(torch, _STORAGES[dtype]), "0", "cpu", numel)
    pickler.dump(_Plain(shape, _contiguous(shape)))
    return buffer.getvalue()


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


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
