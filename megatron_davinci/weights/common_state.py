"""What a torch_dist checkpoint keeps beside its tensors: hyperparameters of the optimizer, Megatron-LM's arguments.

Megatron-Core writes it to common.pt, and since 0.19 as an object inside a .distcp file.
"""

import io
from pathlib import Path
from typing import Any

from data_prep import InputError
from data_prep.io.files import read_regular_file
from megatron_davinci.weights.safe_pickle import RefusedPickleError
from megatron_davinci.weights.stored_chunks import Read, StoredCheckpoint
from megatron_davinci.weights.torch_objects import MAX_OBJECT_BYTES, read_object

_FILE, _OBJECT = "common.pt", "common_state/shard_0_1"


def common_state(directory: Path, read: Read = read_object, stored: StoredCheckpoint | None = None) -> dict[Any, Any]:
    """The common state by its keys, empty where there is none. Raises InputError where it is not plain values.

    `read`: a function of `torch_objects`; `stored`: the checkpoint, where it is open already.
    """
    path = directory / _FILE
    if path.exists():
        found = _read_file(path, read)
    else:
        stored = stored or StoredCheckpoint(directory)
        if _OBJECT not in stored.objects:
            return {}
        path = directory / _OBJECT
        found = stored.read_object(_OBJECT, read)
        found = found[0] if isinstance(found, list) and len(found) == 1 else found
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__} for a checkpoint's common state: it was refused")
    return found


def _read_file(path: Path, read: Read) -> Any:
    data = read_regular_file(path, MAX_OBJECT_BYTES)
    try:
        return read(io.BytesIO(data), 0, len(data))
    except RefusedPickleError as error:
        raise InputError(f"{path} was refused, {error}") from None
