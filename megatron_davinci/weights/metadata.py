"""`.metadata` of a torch_dist checkpoint: which tensors it holds, in which chunks, and where their bytes lie.

It is a pickle of torch's records. They are read by `safe_pickle` into records of this module's own, and checked field
by field; the pickler writes torch's names. Neither imports torch.distributed.checkpoint, nor runs anybody's code.
"""

import io
import pickle
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import torch

from data_prep import InputError
from data_prep.io.files import read_regular_file
from megatron_davinci.weights.safe_pickle import MAX_BYTES, Constructor, Record, RefusedPickleError, loads, refuse

_RECORDS = "torch.distributed.checkpoint.metadata"
_FILES = "torch.distributed.checkpoint.filesystem"
_MEGATRON = "megatron.core.dist_checkpointing.strategies.torch"  # before 0.16 it had records of its own
# Plain records and enumerations beside those that stand for something here.
_IGNORED = {
    _RECORDS: {"StorageMeta"},
    "torch.distributed.checkpoint.planner": {"SavePlan", "TensorWriteData", "WriteItem", "WriteItemType"},
    _MEGATRON: {"MCoreSavePlan"},
}
_DTYPES = (
    "bfloat16", "bool", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2", "int8", "int16", "int32",
    "int64", "uint8",
)  # fmt: skip
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
_MAX_DIMENSIONS, _MAX_LENGTH, _MAX_NAME = 8, 1 << 48, 1000


class _Record(Record):
    """Stands for a class of torch's: `MODULE` and its own name are what the pickle says."""

    MODULE: ClassVar[str] = _RECORDS

    def __setstate__(self, state: Any) -> None:
        if type(state) is not dict:
            raise RefusedPickleError(f"it gives a {type(self).__name__} a {type(state).__name__} for its state")
        for each in fields(self):  # type: ignore[arg-type]  # every record is a dataclass
            if each.name in state:
                setattr(self, each.name, state[each.name])


@dataclass(eq=False)
class ChunkStorageMetadata(_Record):
    """A part of a tensor: where it begins and how large it is, per dimension."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(eq=False)
class TensorProperties(_Record):
    """Type of a tensor's elements."""

    dtype: torch.dtype

    def __getstate__(self) -> Any:
        return (self.dtype, _Layout("torch.strided"), False, _MemoryFormat(0), False)

    def __setstate__(self, state: Any) -> None:
        if type(state) is tuple and state:
            self.dtype = state[0]
        elif type(state) is dict and "dtype" in state:
            self.dtype = state["dtype"]
        else:
            raise RefusedPickleError("it has a tensor without a type")


@dataclass(eq=False)
class TensorStorageMetadata(_Record):
    """A tensor in chunks."""

    properties: TensorProperties
    size: tuple[int, ...]
    chunks: list[ChunkStorageMetadata]


@dataclass(eq=False)
class BytesStorageMetadata(_Record):
    """An object that is no tensor."""


@dataclass(eq=False)
class MetadataIndex(_Record):
    """The name of a chunk: its tensor's, and where it begins in that; None for an object."""

    fqn: str
    offset: tuple[int, ...] | None = None
    index: int | None = None


@dataclass(eq=False)
class _StorageInfo(_Record):
    """Where the bytes of a chunk lie, as torch.save wrote them."""

    MODULE: ClassVar[str] = _FILES

    relative_path: str
    offset: int
    length: int
    transform_descriptors: Any = None


@dataclass(eq=False)
class Metadata(_Record):
    """The description of a whole checkpoint."""

    state_dict_metadata: dict[str, TensorStorageMetadata | BytesStorageMetadata]
    planner_data: Any = None
    storage_data: dict[MetadataIndex, _StorageInfo] = field(default_factory=dict)
    storage_meta: Any = None
    version: str | None = None


class _Ignored(_Record):
    """A record that nothing here needs."""

    def __setstate__(self, state: Any) -> None: ...


class _Layout(str):
    """What torch writes as a call of torch.serialization._get_layout."""

    __slots__ = ()


class _MemoryFormat(int):
    """What torch writes as a member of _MEM_FORMAT_ENCODING."""


StorageInfo = _StorageInfo
_WRITTEN = (
    ChunkStorageMetadata, TensorProperties, TensorStorageMetadata, BytesStorageMetadata, MetadataIndex, _StorageInfo,
    Metadata,
)  # fmt: skip


def _makes(record: type[Record]) -> Constructor:
    return Constructor(lambda *_: record.__new__(record))


def _size(value: Any) -> Any:
    """A torch.Size as the tuple that it is made of: any other value would be copied."""
    if type(value) is not tuple:
        raise RefusedPickleError(f"it has a {type(value).__name__} where torch writes a tuple")
    return value


_KNOWN: dict[tuple[str, str], Any] = {
    **{(record.MODULE, record.__name__): _makes(record) for record in _WRITTEN},
    **{(module, name): _makes(_Ignored) for module, names in _IGNORED.items() for name in names},
    (_MEGATRON, "MCoreMetadata"): _makes(Metadata),
    **{("torch", name): getattr(torch, name) for name in _DTYPES},
    ("torch", "Size"): Constructor(_size),
    ("torch.serialization", "_get_layout"): _makes(_Ignored),
    (_RECORDS, "_MEM_FORMAT_ENCODING"): _makes(_Ignored),
    # where it was saved to, as torch notes it
    **{(module, name): _makes(_Ignored) for module in ("pathlib", "pathlib._local") for name in _PATHS},
}


def read_metadata(path: Path) -> Metadata:
    """The record of a checkpoint: its tensors, its objects, and their places.

    Raises InputError when the pickle asks for anything that Megatron never writes.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist: {path.parent} is no torch_dist checkpoint")
    data = read_regular_file(path, MAX_BYTES)
    try:
        found, _ = loads(data, lambda module, name: _KNOWN.get((module, name)) or refuse(module, name))
    except RefusedPickleError as error:
        raise InputError(f"{path} is not Megatron's metadata ({error}): it was refused") from None
    if not isinstance(found, Metadata):
        raise InputError(f"{path} is not Megatron's metadata (a {type(found).__name__}): it was refused")
    try:
        _check(found)
    except (AttributeError, TypeError, ValueError) as error:  # its fields are anybody's
        raise InputError(f"{path} is damaged ({error}): copy the checkpoint again") from None
    return Metadata(found.state_dict_metadata, storage_data=found.storage_data)


def _check(metadata: Metadata) -> None:
    """Raise ValueError, TypeError or AttributeError where a field is not what it is declared to be."""
    chunks = 0
    for name, entry in _items(metadata.state_dict_metadata, "state_dict_metadata"):
        _check_name(name)
        if isinstance(entry, BytesStorageMetadata):
            continue
        _expect(TensorStorageMetadata, entry, name)
        _expect(TensorProperties, entry.properties, f"properties of {name}")
        _expect(torch.dtype, entry.properties.dtype, f"dtype of {name}")
        _expect(list, entry.chunks, f"chunks of {name}")
        chunks += len(entry.chunks)
        if chunks > len(metadata.storage_data):  # one list of chunks may stand in many tensors
            raise ValueError(f"more chunks up to {name} than places")
        _check_lengths(entry.size, f"size of {name}")
        for chunk in entry.chunks:
            _expect(ChunkStorageMetadata, chunk, f"a chunk of {name}")
            _check_lengths(chunk.offsets, f"offsets of {name}")
            _check_lengths(chunk.sizes, f"sizes of {name}")
    for index, info in _items(metadata.storage_data, "storage_data"):
        _expect(MetadataIndex, index, "a place")
        _check_name(index.fqn)
        if index.offset is not None:
            _check_lengths(index.offset, f"offset of {index.fqn}")
        _expect(StorageInfo, info, f"the place of {index.fqn}")
        _expect(str, info.relative_path, f"the file of {index.fqn}")
        _check_lengths((info.offset, info.length), f"the place of {index.fqn}")


def _check_name(name: Any) -> None:
    """Before it becomes part of any sentence: a name of megabytes may be every tensor's."""
    if not isinstance(name, str) or not name.isprintable() or len(name) > _MAX_NAME:
        raise TypeError(f"a tensor's name is no text of up to {_MAX_NAME:,} characters")


def _items(value: Any, what: str) -> Any:
    _expect(dict, value, what)
    return value.items()


def _expect(kind: type, value: Any, what: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{what} is a {type(value).__name__}")


def _check_lengths(value: Any, what: str) -> None:
    if not isinstance(value, tuple) or len(value) > _MAX_DIMENSIONS:
        raise TypeError(f"{what} is a {type(value).__name__}")
    if not all(type(length) is int and 0 <= length < _MAX_LENGTH for length in value):
        raise ValueError(f"{what} has no lengths")


class _Name:
    """A global of torch's, written by name."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


_InPython: Any = pickle._Pickler  # its C twin cannot be told how to write a name


class _Pickler(_InPython):
    """Writes records under torch's names, without importing what they name."""

    def __init__(self, file: Any) -> None:
        super().__init__(file, protocol=2)
        self._names: dict[tuple[str, str], _Name] = {}

    def save_record(self, record: _Record) -> None:
        """Write an object as pickle does: a new one of its class, then its state."""
        state = record.__getstate__() if isinstance(record, TensorProperties) else vars(record)
        self.save(self._name(record.MODULE, type(record).__name__))
        self.save(())
        self.write(pickle.NEWOBJ)
        self.memoize(record)
        self.save(state)
        self.write(pickle.BUILD)

    def save_call(self, value: _Layout | _MemoryFormat) -> None:
        """A function or an enumeration of torch's, called with one plain value."""
        plain = int(value) if isinstance(value, int) else str(value)
        named = (_RECORDS, "_MEM_FORMAT_ENCODING") if isinstance(value, int) else ("torch.serialization", "_get_layout")
        self.save(self._name(*named))
        self.save((plain,))
        self.write(pickle.REDUCE)

    def save_name(self, name: _Name) -> None:
        """GLOBAL, which pickle itself writes only for what it has imported."""
        self.write(pickle.GLOBAL + f"{name.module}\n{name.name}\n".encode())
        self.memoize(name)

    def _name(self, module: str, name: str) -> _Name:
        return self._names.setdefault((module, name), _Name(module, name))


_Pickler.dispatch = {
    **_InPython.dispatch,
    **dict.fromkeys(_WRITTEN, _Pickler.save_record),
    **dict.fromkeys((_Layout, _MemoryFormat), _Pickler.save_call),
    _Name: _Pickler.save_name,
}


def write_metadata(metadata: Metadata, path: Path) -> None:
    """Write `.metadata` as torch would."""
    buffer = io.BytesIO()
    _Pickler(buffer).dump(metadata)
    path.write_bytes(buffer.getvalue())
