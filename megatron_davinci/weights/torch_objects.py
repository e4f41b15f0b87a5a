"""Objects that torch.save wrote, rebuilt without running anything of theirs: plain values, containers, whole tensors.

What Megatron keeps beside its sharded tensors is of this kind: common.pt, the extra state of layers, and since 0.19 the
common state, an object like these inside a .distcp file.
"""

import math
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from megatron_davinci.weights.safe_pickle import (
    OPAQUE,
    Constructor,
    RefusedPickleError,
    check_extent,
    loads,
    refuse,
)
from megatron_davinci.weights.torch_zip import STORAGES, Archive, contiguous_strides

MAX_OBJECT_BYTES = 16 << 20
"""Of an object with its tensors; a run's common state has some thousands."""
_LOAD_FROM_BYTES = (
    ("torch.storage", "_load_from_bytes"),
    ("megatron.core.safe_globals", "safe_load_from_bytes"),  # which Megatron-Core 0.19 puts in its place
)
_MAX_DIMENSIONS = 8
_MAX_HEAD = 4096  # bytes of the pickles before a storage's elements; they have some hundreds
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # that torch.save began with before it wrote archives


class _Storage(NamedTuple):
    """The elements of tensors, on the CPU."""

    elements: Tensor


def read_object(file: BinaryIO, start: int, length: int) -> Any:
    """The object whose archive lies at `start` of an open file, `length` bytes long. Raises RefusedPickleError."""
    if length > MAX_OBJECT_BYTES:
        raise RefusedPickleError(f"it has {length:,} bytes, more than {MAX_OBJECT_BYTES:,}")
    archive = Archive(file, start, length)
    stored: dict[str, _Storage] = {}

    def storage(pid: Any) -> _Storage:
        _, dtype, key, _, count = pid
        if type(key) is not str:
            raise RefusedPickleError("it has a tensor of no storage")
        if key not in stored:
            stored[key] = _Storage(_elements(archive.read(f"data/{key}", length), dtype, count))
        return stored[key]

    return _checked(loads(archive.read("data.pkl", length), _names, storage)[0])


def read_plain(file: BinaryIO, start: int, length: int) -> Any:
    """Read like `read_object`; whatever is no plain value is `Opaque`: enough for any program's object."""
    if length > MAX_OBJECT_BYTES:
        raise RefusedPickleError(f"it has {length:,} bytes, more than {MAX_OBJECT_BYTES:,}")
    record = Archive(file, start, length).read("data.pkl", length)
    return _checked(loads(record, lambda module, name: OPAQUE, lambda pid: None)[0])


def read_pickled(data: bytes, opaque: str) -> Any:
    """The object that pickle.dumps made of plain values and tensors on the CPU. Raises RefusedPickleError.

    Objects of classes in the module `opaque` are `Opaque`, with nothing of the class but its state.
    """
    if len(data) > MAX_OBJECT_BYTES:
        raise RefusedPickleError(f"it has {len(data):,} bytes, more than {MAX_OBJECT_BYTES:,}")
    room = [MAX_OBJECT_BYTES]

    def load_from_bytes(content: Any) -> _Storage:
        room[0] -= len(content)
        if type(content) is not bytes or room[0] < 0:
            raise RefusedPickleError("its tensors take more bytes than it has")
        return _read_before_archives(content)

    def names(module: str, name: str) -> Any:
        if (module, name) in _LOAD_FROM_BYTES:
            return Constructor(load_from_bytes)
        if module == opaque:
            return OPAQUE
        return _names(module, name)

    return _checked(loads(data, names)[0])


def _checked(value: Any) -> Any:
    check_extent(value)
    return value


def _read_before_archives(data: bytes) -> _Storage:
    """A storage alone, in the form of torch.save without an archive: five pickles, then the elements."""
    head, at = data[:_MAX_HEAD], 0
    for expected in (_MAGIC, _PROTOCOL, None):  # the third says the sizes of C's integers
        found, at = loads(head, _names, start=at)
        if expected is not None and found != expected:
            raise RefusedPickleError("a tensor in it is not as torch.save writes one")
    (_, dtype, key, _, count, *_), at = loads(head, _names, lambda pid: pid, at)
    keys, at = loads(head, _names, start=at)
    one_key = type(keys) is list and len(keys) == 1 and type(key) is type(keys[0]) is str and key == keys[0]
    if not one_key or int.from_bytes(data[at : at + 8], "little") != count:
        raise RefusedPickleError("a tensor in it is not as torch.save writes one")
    return _Storage(_elements(data[at + 8 :], dtype, count))


def _elements(data: bytes, dtype: Any, count: Any) -> Tensor:
    if not isinstance(dtype, torch.dtype) or type(count) is not int or len(data) != count * dtype.itemsize:
        raise RefusedPickleError("a tensor in it has other bytes than it declares")
    return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """A contiguous part of a storage: no other is needed, and any other could declare terabytes."""
    if not isinstance(storage, _Storage) or type(size) is not tuple or len(size) > _MAX_DIMENSIONS:
        raise RefusedPickleError("it has a tensor of no shape")
    if len(stride) != len(size) or not all(type(n) is int and n >= 0 for n in (*size, *stride, offset)):
        raise RefusedPickleError("it has a tensor of no shape")
    count = math.prod(size)
    same = [(length, step) for length, step in zip(size, stride, strict=True) if length != 1]
    if same != [(length, step) for length, step in zip(size, contiguous_strides(size), strict=True) if length != 1]:
        raise RefusedPickleError("it has a tensor that is not contiguous")
    if offset + count > storage.elements.numel():
        raise RefusedPickleError("it has a tensor outside its storage")
    return storage.elements[offset : offset + count].view(size)


def _encode(text: Any, encoding: Any) -> bytes:
    """Bytes, as pickle's protocol 2 writes them."""
    if type(text) is not str or encoding != "latin1":
        raise RefusedPickleError("it encodes something else than bytes")
    return text.encode("latin1")


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): Constructor(lambda: {}),  # noqa: PIE807 - dict would take arguments, and hash them
    ("torch._utils", "_rebuild_tensor_v2"): Constructor(_rebuild_tensor, size=1024),
    ("_codecs", "encode"): Constructor(_encode),
    **{("torch", name): dtype for dtype, name in STORAGES.items()},
    **{("torch", str(dtype).removeprefix("torch.")): dtype for dtype in STORAGES},
}


def _names(module: str, name: str) -> Any:
    return _KNOWN.get((module, name)) or refuse(module, name)
