"""Initial weights: from a seed, from a Hugging Face directory or a checkpoint. The same for every layout of ranks."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from xxhash import xxh3_64

from megatron_davinci.core.sharding import full_shape, named_parameters, shard
from megatron_davinci.models.config import ModelConfig
from megatron_davinci.weights.open_weights import open_weights

_VOCABULARY_WEIGHTS = ("word_embeddings.weight", "output_layer.weight")
_RESIDUAL_OUTPUTS = ("self_attention.linear_proj.weight", "mlp.linear_fc2.weight")


@torch.no_grad()
def init_weights(chunks: Sequence[GPTModel], config: ModelConfig, seed: int) -> None:
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
def load_weights(chunks: Sequence[GPTModel], path: Path, model: str) -> None:
    """Fill every parameter from a Hugging Face directory or a checkpoint. Raises InputError where they do not fit.

    `model`: see `open_weights`.
    """
    rank, size = _tensor_parallel()
    by_name = {target.full_name: target for target in open_weights(path, model).megatron_tensors()}
    for name, parameter in named_parameters(chunks):
        parameter.copy_(shard(by_name[name].whole(), parameter, name, rank, size))


def _tensor_parallel() -> tuple[int, int]:
    rank: int = parallel_state.get_tensor_model_parallel_rank()
    size: int = parallel_state.get_tensor_model_parallel_world_size()
    return rank, size
