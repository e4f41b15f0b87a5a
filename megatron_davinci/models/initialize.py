"""Initial weights: from a seed, or from a Hugging Face directory. The same for every layout of ranks."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from safetensors import SafetensorError, safe_open
from torch import Tensor
from xxhash import xxh3_64

from data_prep import InputError
from data_prep.files import read_json
from megatron_davinci.models.config import ModelConfig
from megatron_davinci.models.families import mappings_of
from megatron_davinci.models.sharding import full_shape, named_parameters, shard
from megatron_davinci.recipe import WEIGHT_FILES

_LAYER_NUMBER = re.compile(r"(?<=decoder\.layers\.)\d+")
_VOCABULARY_WEIGHTS = ("word_embeddings.weight", "output_layer.weight")
_RESIDUAL_OUTPUTS = ("self_attention.linear_proj.weight", "mlp.linear_fc2.weight")


@torch.no_grad()
def draw_weights(chunks: Sequence[GPTModel], config: ModelConfig, seed: int) -> None:
    """Fill every parameter from (seed, its global name) alone, so that no split over ranks changes a value.

    Normal with the model's standard deviation, divided by sqrt(2 * layers) where a layer writes to the residual stream
    (Megatron's scaled initialisation); norms 1, biases 0.
    """
    rank, size = _tensor_parallel()
    for name, parameter in named_parameters(chunks):
        if "norm" in name:
            parameter.fill_(1.0)
        elif name.endswith(".bias"):
            parameter.zero_()
        else:
            std = config.init_method_std
            if name.endswith(_RESIDUAL_OUTPUTS):
                std /= math.sqrt(2 * config.num_layers)
            generator = torch.Generator().manual_seed(xxh3_64(name.encode(), seed=seed).intdigest() >> 1)
            full = torch.empty(full_shape(parameter, size)).normal_(0.0, std, generator=generator)
            if name.endswith(_VOCABULARY_WEIGHTS):
                full[config.vocab_size :] = 0.0
            parameter.copy_(shard(full, parameter, name, rank, size))


@torch.no_grad()
def load_huggingface_weights(chunks: Sequence[GPTModel], config: ModelConfig, directory: Path) -> None:
    """Fill every parameter from the safetensors of a Hugging Face directory. Raises InputError when one is missing."""
    rank, size = _tensor_parallel()
    mappings = {mapping.megatron: mapping for mapping in mappings_of(config)}
    tensors = _SafetensorsDirectory(directory)
    for name, parameter in named_parameters(chunks):
        layer = _LAYER_NUMBER.search(name)
        mapping = mappings[_LAYER_NUMBER.sub("*", name)]
        sources = [tensors.read(hf.replace("*", layer[0]) if layer else hf) for hf in mapping.hf]
        full = mapping.from_hf(sources, config)
        if list(full.shape) != full_shape(parameter, size):
            raise InputError(
                f"{directory}: {mapping.hf[0]} gives {name} the shape {list(full.shape)}, the model needs "
                f"{full_shape(parameter, size)}: init_from and model must be the same architecture"
            )
        parameter.copy_(shard(full, parameter, name, rank, size))


class _SafetensorsDirectory:
    """Tensors by name, out of one file or of shards with an index."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        index = directory / "model.safetensors.index.json"
        if index.is_file():
            self._files: dict[str, str] = read_json(index)["weight_map"]
        elif (directory / "model.safetensors").is_file():
            with _open(directory / "model.safetensors") as file:
                self._files = dict.fromkeys(file.keys(), "model.safetensors")
        else:
            raise InputError(f"{directory} has no {' and no '.join(WEIGHT_FILES)}")

    def read(self, name: str) -> Tensor:
        """One tensor, read from disk now."""
        if name not in self._files:
            raise InputError(f"{self._directory} has no tensor {name}")
        with _open(self._directory / self._files[name]) as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor


def _open(path: Path) -> Any:
    """A safetensors file. Raises InputError when it is absent or none."""
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: the index names it") from None
    except SafetensorError as error:
        raise InputError(f"{path} is damaged ({error}): copy it again") from None


def _tensor_parallel() -> tuple[int, int]:
    rank: int = parallel_state.get_tensor_model_parallel_rank()
    size: int = parallel_state.get_tensor_model_parallel_world_size()
    return rank, size
