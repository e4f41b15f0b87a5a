"""Archives as torch.save writes them, inside files of checkpoints: found, and written, in place.

Every tensor and object of a torch_dist checkpoint is a zip archive of its own: data.pkl says what it is, data/N are the
elements of its tensors, uncompressed.
"""

import io
import math
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import torch

from data_prep import InputError
from megatron_davinci.weights.safe_pickle import Constructor, RefusedPickleError, loads, refuse

_DATA, _RECORD = "archive/data/0", "archive/data.pkl"
_RECORD_LIMIT = 1 << 20  # bytes; a tensor's is below a thousand
_DIRECTORY_LIMIT = 1 << 20  # bytes that zipfile reads at once: a list of tens of thousands of entries
_LOCAL_HEADER = struct.Struct("<26xHH")  # lengths of the name and of the extra field, at the end of 30 bytes
_ALIGNMENT = 64  # of the data in its file, as torch.save has it
STORAGES = {
    torch.float32: "FloatStorage", torch.bfloat16: "BFloat16Storage", torch.float16: "HalfStorage",
    torch.float64: "DoubleStorage", torch.int64: "LongStorage", torch.int32: "IntStorage", torch.int16: "ShortStorage",
    torch.int8: "CharStorage", torch.uint8: "ByteStorage", torch.bool: "BoolStorage",
}  # fmt: skip
"""The names that torch gives to the elements of a tensor, by their type."""


class RawStorage(NamedTuple):
    """Where in a file an entry's bytes begin, how many they are, and their CRC-32; 0 where torch left it out."""

    start: int
    length: int
    crc: int


class Archive:
    """The archive that lies at `start` of an open file, `length` bytes long. Raises RefusedPickleError."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file, self._start, self._length = file, start, length
        try:
            archive = zipfile.ZipFile(_Window(file, start, length))
        except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, struct.error):
            raise RefusedPickleError("its archive is cut off or altered") from None
        self._entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        if sum(entry.file_size for entry in self._entries.values()) > length:
            raise RefusedPickleError("its archive declares more bytes than it has")

    def locate(self, name: str) -> RawStorage:
        """Where an entry lies; `name` without the archive's own."""
        entry = self._entries.get(name)
        if entry is None or entry.compress_type != zipfile.ZIP_STORED or not 0 <= entry.header_offset < self._length:
            raise RefusedPickleError(f"its archive has no {name}: it is cut off or altered"[:200])
        self._file.seek(self._start + entry.header_offset)
        header = self._file.read(_LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size:
            raise RefusedPickleError("its archive is cut off")
        start = self._start + entry.header_offset + _LOCAL_HEADER.size + sum(_LOCAL_HEADER.unpack(header))
        return RawStorage(start, entry.file_size, entry.CRC)

    def read(self, name: str, limit: int) -> bytes:
        """The bytes of an entry, checked."""
        data = self.locate(name)
        if data.length > limit:
            raise RefusedPickleError(f"its {name} has {data.length:,} bytes, more than {limit:,}")
        self._file.seek(data.start)
        content = self._file.read(data.length)
        if len(content) < data.length or (data.crc and zlib.crc32(content) != data.crc):
            raise RefusedPickleError(f"its {name} is cut off or altered")
        return content


def find_data(path: Path, start: int, length: int, shape: tuple[int, ...], dtype: torch.dtype) -> RawStorage:
    """The elements of a tensor whose archive lies at `start`, `length` bytes long.

    Raises InputError where there is no such archive, or it does not hold one contiguous tensor of that kind.
    """
    expected = math.prod(shape) * dtype.itemsize
    with path.open("rb") as file:
        try:
            archive = Archive(file, start, length)
            found, record = archive.locate("data/0"), archive.read("data.pkl", _RECORD_LIMIT)
        except RefusedPickleError as error:
            raise InputError(f"{path} holds no tensor at byte {start}: {error}") from None
    if found.length != expected:
        raise InputError(f"{path} holds {found.length} bytes of a tensor at byte {start}, its metadata says {expected}")
    if not _is_plain(record, shape, dtype):
        raise InputError(f"{path} holds no contiguous {dtype} tensor of shape {list(shape)} at byte {start}")
    return found


def _is_plain(record: bytes, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether data.pkl rebuilds just that tensor out of its elements in their order."""
    try:
        found, _ = loads(record, _record_names, lambda pid: pid)
        storage, offset, size, strides, *_ = found
        given, expected = (
            [(length, stride) for length, stride in zip(lengths, steps, strict=True) if length != 1]
            for lengths, steps in ((size, strides), (shape, contiguous_strides(shape)))
        )
        return (storage[1], offset, given) == (STORAGES.get(dtype), 0, expected)
    except (RefusedPickleError, TypeError, ValueError, IndexError, KeyError):
        return False


def _record_names(module: str, name: str) -> Any:
    """Names in a tensor's data.pkl: torch's function that rebuilds it gives its arguments."""
    if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
        return Constructor(lambda *arguments: arguments)
    if (module, name) == ("collections", "OrderedDict"):
        return Constructor(lambda: {})  # noqa: PIE807 - dict would take arguments, and hash them
    if module == "torch" and name in STORAGES.values():
        return name
    return refuse(module, name)


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
    pickler.storage = ("storage", getattr(torch, STORAGES[dtype]), "0", "cpu", numel)
    pickler.dump(_Plain(shape, contiguous_strides(shape)))
    return buffer.getvalue()


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a contiguous tensor, in elements."""
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
        if self._at < 0:
            raise OSError("a place before the archive")
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Raises OSError for more than a list of entries has."""
        size = self._length - self._at if size < 0 else min(size, self._length - self._at)
        if size > _DIRECTORY_LIMIT:
            raise OSError(f"an archive's list of entries has {size:,} bytes")
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
