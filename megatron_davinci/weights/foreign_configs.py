"""What a checkpoint of another program's says of its model: Megatron-LM's arguments, Megatron-Bridge's run_config.yaml.

Two models whose tensors have the same shapes may differ in their heads: weights would be cut up wrongly, silently.
"""

import sys
from pathlib import Path
from typing import Any

import yaml

from data_prep import InputError
from data_prep.io.errors import printable
from data_prep.io.files import read_regular_file
from megatron_davinci.models.config import ModelConfig
from megatron_davinci.weights.common_state import common_state
from megatron_davinci.weights.torch_objects import read_plain

_MAX_YAML_BYTES, _MAX_NUMBER = 1 << 20, 1 << 53
# What determines how weights are read, under the names that both programs and ModelConfig share.
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
        given = common_state(directory, read_plain)["args"].state
    except InputError as refused:  # weights are read without it
        print(f"{printable(refused)}: what it says of its model is not compared", file=sys.stderr)
        return {}
    except (KeyError, AttributeError):  # without arguments there is nothing to compare
        return {}
    found = _numbers(given)
    if found.get("group_query_attention") is False:
        found["num_query_groups"] = found.get("num_attention_heads")
    if "untie_embeddings_and_output_weights" in found:
        found["tied_embeddings"] = not found["untie_embeddings_and_output_weights"]
    return found


def _numbers(given: Any) -> dict[str, Any]:
    """What can be compared of what a file says: numbers that have a size."""
    if type(given) is not dict:
        return {}
    return {k: v for k, v in given.items() if isinstance(v, bool | int | float) and abs(v) < _MAX_NUMBER}


def _bridge_fields(directory: Path) -> dict[str, Any]:
    try:
        said = yaml.load(read_regular_file(directory / "run_config.yaml", _MAX_YAML_BYTES), _Loader)  # noqa: S506
        found = _numbers(said["model"])
    except Exception:  # a damaged file raises nearly anything
        return {}
    found["tied_embeddings"] = found.get("share_embeddings_and_output_weights")
    return found


class _Loader(yaml.SafeLoader):
    """YAML without merge keys: thirty lines of them copy each other a thousand million times."""

    def flatten_mapping(self, node: Any) -> None:
        """Called for each mapping. Raises ConstructorError for a merge key."""
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.constructor.ConstructorError(problem="a merge key")
        super().flatten_mapping(node)
