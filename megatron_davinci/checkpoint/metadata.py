"""`.metadata` of a torch_dist checkpoint: which tensors it holds, in which chunks, and where their bytes lie.

It is a pickle of torch's records. The unpickler here knows only what Megatron writes, and makes records of its own of
it; the pickler writes torch's names. Neither imports torch.distributed.checkpoint, nor runs anybody's code.
"""

import io
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from data_prep import InputError

_RECORDS = "torch.distributed.checkpoint.metadata"
_FILES = "torch.distributed.checkpoint.filesystem"
_MEGATRON = "megatron.core.dist_checkpointing.strategies.torch"  # before 0.16 it had records of its own
# Plain records and enumerations beside those that stand for something here.
_IGNORED = {
    _RECORDS: {"StorageMeta"},
    "torch.distributed.checkpoint.planner": {"SavePlan", "TensorWriteData", "WriteItem", "WriteItemType"},
}
_DTYPES = (
    "bfloat16", "bool", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2", "int8", "int16", "int32",
    "int64", "uint8",
)  # fmt: skip


class _Record:
    """Stands for a class of torch's: `MODULE` and its own name are what the pickle says."""

    MODULE: ClassVar[str] = _RECORDS

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state)


@dataclass
class ChunkStorageMetadata(_Record):
    """A part of a tensor: where it begins and how large it is, per dimension."""

    offsets: Any
    sizes: Any


@dataclass
class TensorProperties(_Record):
    """Type of a tensor's elements."""

    dtype: Any

    def __getstate__(self) -> Any:
        return (self.dtype, _Layout("torch.strided"), False, _MemoryFormat(0), False)

    def __setstate__(self, state: Any) -> None:
        self.dtype = state[0] if isinstance(state, tuple) else state["dtype"]


@dataclass
class TensorStorageMetadata(_Record):
    """A tensor in chunks."""

    properties: TensorProperties
    size: Any
    chunks: list[ChunkStorageMetadata]


@dataclass
class BytesStorageMetadata(_Record):
    """An object that is no tensor."""


@dataclass(eq=False)
class MetadataIndex(_Record):
    """The name of a chunk: its tensor's, and where it begins in that; None for an object."""

    fqn: str
    offset: Any = None
    index: int | None = None


@dataclass
class _StorageInfo(_Record):
    """Where the bytes of a chunk lie, as torch.save wrote them."""

    MODULE: ClassVar[str] = _FILES

    relative_path: str
    offset: int
    length: int
    transform_descriptors: Any = None


@dataclass
class Metadata(_Record):
    """All of a checkpoint."""

    state_dict_metadata: dict[str, TensorStorageMetadata | BytesStorageMetadata]
    planner_data: Any = None
    storage_data: dict[MetadataIndex, _StorageInfo] = field(default_factory=dict)
    storage_meta: Any = None
    version: str | None = None


class _Ignored(_Record):
    """A record that nothing here needs."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


class _Layout(str):
    """What torch writes as a call of torch.serialization._get_layout."""

    __slots__ = ()


class _MemoryFormat(int):
    """What torch writes as a member of _MEM_FORMAT_ENCODING."""


StorageInfo = _StorageInfo
_KNOWN: dict[tuple[str, str], Any] = {
    **{
        (record.MODULE, record.__name__): record
        for record in (ChunkStorageMetadata, TensorProperties, TensorStorageMetadata, BytesStorageMetadata,
                       MetadataIndex, _StorageInfo, Metadata)
    },
    **{(module, name): _Ignored for module, names in _IGNORED.items() for name in names},
    (_MEGATRON, "MCoreMetadata"): Metadata,
    (_MEGATRON, "MCoreSavePlan"): _Ignored,
    **{("torch", name): getattr(torch, name) for name in _DTYPES},
    ("torch", "Size"): tuple,
    ("torch.serialization", "_get_layout"): _Layout,
    (_RECORDS, "_MEM_FORMAT_ENCODING"): _MemoryFormat,
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return _KNOWN[module, name]


def read_metadata(path: Path) -> Metadata:
    """The record of a checkpoint. Raises InputError when the pickle asks for anything that Megatron never writes."""
    try:
        with path.open("rb") as file:
            found = _Unpickler(file).load()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: {path.parent} is no torch_dist checkpoint") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        raise InputError(f"{path} is not Megatron's metadata ({error}): it was refused") from None
    if not isinstance(found, Metadata):
        raise InputError(f"{path} is not Megatron's metadata (a {type(found).__name__}): it was refused")
    return found


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
        """As pickle does it for any object: a new one of its class, then its state."""
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
    **{
        record: _Pickler.save_record
        for record in _KNOWN.values()
        if isinstance(record, type) and issubclass(record, _Record)
    },
    **dict.fromkeys((_Layout, _MemoryFormat), _Pickler.save_call),
    _Name: _Pickler.save_name,
}


def write_metadata(metadata: Metadata, path: Path) -> None:
    """Write `.metadata` as torch would."""
    buffer = io.BytesIO()
    _Pickler(buffer).dump(metadata)
    path.write_bytes(buffer.getvalue())
