"""`.metadata` of a torch_dist checkpoint is a pickle: the unpickler here knows only what Megatron writes."""

import pickle
from pathlib import Path
from typing import Any

from data_prep import InputError

# Everything that torch's and Megatron's checkpoint writers put into .metadata: plain records and enumerations.
_NAMES = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.planner": {"SavePlan", "TensorWriteData", "WriteItem", "WriteItemType"},
}  # fmt: skip
_DTYPES = {
    "bfloat16", "bool", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2", "int8", "int16", "int32",
    "int64", "uint8",
}  # fmt: skip


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _NAMES.get(module, ()) and not (module == "torch" and name in _DTYPES):
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)


def read_metadata(path: Path) -> Any:
    """torch's Metadata record of a checkpoint. Raises InputError when the pickle asks for anything else."""
    try:
        with path.open("rb") as file:
            return _MetadataUnpickler(file).load()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: {path.parent} is no torch_dist checkpoint") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        raise InputError(f"{path} is not Megatron's metadata ({error}): it was refused") from None
