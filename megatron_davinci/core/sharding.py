"""Names and shards: from a rank's parameter to the one of the whole model, and back.

A global name is the one in Megatron's checkpoints with the layer's number in the model, not in its pipeline stage.
"""

from collections.abc import Iterator, Sequence

import torch
from megatron.core.models.gpt import GPTModel
from torch import Tensor
from torch.nn import Parameter

# The local layer has its norms outside the linear layers, Megatron's checkpoints name them inside (its key map).
_CHECKPOINT_NAMES = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}


def named_parameters(chunks: Sequence[GPTModel]) -> Iterator[tuple[str, Parameter]]:
    """(global name, parameter) of one rank; a tied output layer's copy bears the embedding's name."""
    for model in chunks:
        for name, parameter in model.named_parameters():
            if name.startswith("decoder.layers."):
                _, _, local, rest = name.split(".", 3)
                number = model.decoder.layers[int(local)].layer_number - 1
                name = f"decoder.layers.{number}.{_CHECKPOINT_NAMES.get(rest, rest)}"
            elif name == "output_layer.weight" and model.share_embeddings_and_output_weights:
                name = "embedding.word_embeddings.weight"
            yield name, parameter


def shard(full: Tensor, parameter: Parameter, name: str, rank: int, size: int) -> Tensor:
    """The part of a whole tensor that tensor-parallel rank `rank` of `size` holds."""
    if not getattr(parameter, "tensor_model_parallel", False) or size == 1:
        return full
    if "linear_fc1" in name:  # each rank has its part of the gate on top of its part of the up projection
        return torch.cat([half.chunk(size)[rank] for half in full.chunk(2)])
    return full.chunk(size, dim=parameter.partition_dim)[rank]  # type: ignore[attr-defined]  # Megatron sets it


def unshard(parts: list[Tensor], partition_dim: int | None, name: str) -> Tensor:
    """Inverse of shard, given the parts of all ranks in order; `partition_dim` None where all hold the whole."""
    if partition_dim is None or len(parts) == 1:
        return parts[0]
    if "linear_fc1" in name:
        halves = [part.chunk(2) for part in parts]
        return torch.cat([gate for gate, _ in halves] + [up for _, up in halves])
    return torch.cat(parts, dim=partition_dim)


def full_shape(parameter: Parameter, size: int) -> list[int]:
    """Shape of the whole tensor of which `parameter` is one of `size` shards."""
    shape = list(parameter.shape)
    if getattr(parameter, "tensor_model_parallel", False):
        shape[parameter.partition_dim] *= size  # type: ignore[attr-defined]  # Megatron sets it
    return shape
