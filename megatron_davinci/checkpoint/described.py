"""What a checkpoint of another program's says of its model: Megatron-LM's arguments, Megatron-Bridge's run_config.yaml.

Two models whose tensors have the same shapes may differ in their heads: weights would be cut up wrongly, silently.
"""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import yaml

from data_prep import InputError
from megatron_davinci.models.config import ModelConfig

_RECORD_LIMIT = 16 << 20  # bytes; of arguments they are some ten thousand
# What settles how weights are read, under the names that both programs and ModelConfig share.
_FIELDS = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels",
           "rotary_base", "tied_embeddings")  # fmt: skip


def check_description(directory: Path, model: ModelConfig) -> None:
    """Raise InputError where a checkpoint says of itself what is not true of the model; silence is no lie."""
    said = _bridge_fields(directory) or _arguments(directory)
    for name in _FIELDS:
        value, ours = said.get(name), getattr(model, name)
        if isinstance(value, bool | int | float) and value != ours:
            raise InputError(f"{directory} says that its {name} is {value}, the model named has {ours}: name its own")


def _arguments(directory: Path) -> dict[str, Any]:
    """Those that Megatron-LM trained with; nothing where there are none."""
    try:
        with zipfile.ZipFile(directory / "common.pt") as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            if archive.getinfo(name).file_size > _RECORD_LIMIT:
                return {}
            common = _NamesOnly(io.BytesIO(archive.read(name))).load()
        found = dict(vars(common["args"]))
    except Exception:  # a damaged pickle raises nearly anything; without arguments there is nothing to compare
        return {}
    if found.get("group_query_attention") is False:
        found["num_query_groups"] = found.get("num_attention_heads")
    if "untie_embeddings_and_output_weights" in found:
        found["tied_embeddings"] = not found["untie_embeddings_and_output_weights"]
    return found


def _bridge_fields(directory: Path) -> dict[str, Any]:
    try:
        said = yaml.safe_load((directory / "run_config.yaml").read_text(encoding="utf-8"))
        found = dict(said["model"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return {}
    found["tied_embeddings"] = found.get("share_embeddings_and_output_weights")
    return found


class _Anything:
    """Stands for an object of any class, of which no code is run."""

    def __new__(cls, *_: Any, **__: Any) -> "_Anything":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {})

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None:
        """As of a list."""

    def extend(self, values: Any) -> None:
        """As of a list."""


class _NamesOnly(pickle.Unpickler):
    """Knows no class: every one is Anything."""

    def find_class(self, module: str, name: str) -> Any:
        return _Anything

    def persistent_load(self, pid: Any) -> Any:
        return None
