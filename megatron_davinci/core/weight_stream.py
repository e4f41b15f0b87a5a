"""The trainer's weights as whole tensors under Hugging Face's names, one after the other.

All ranks of the first replica iterate together, in any layout. The main rank gets the tensors, and never holds more
than one of Megatron's at a time; the others give their parts.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor
from torch.nn import Parameter

from megatron_davinci.core.groups import all_gather_object
from megatron_davinci.core.optimizer import Chunks, unwrap
from megatron_davinci.core.sharding import named_parameters, unshard
from megatron_davinci.models.config import ModelConfig
from megatron_davinci.models.families import Mapping

Placed = tuple[Mapping, str]  # a mapping, and Megatron's global name


def tensors_of(model: ModelConfig, dtype: torch.dtype) -> list[tuple[str, str, list[int]]]:
    """(name, dtype, shape) of all that `stream_weights` gives, in its order."""
    kind = str(dtype).removeprefix("torch.")
    return [
        (name, kind, list(shape))
        for mapping, megatron in _in_order(model)
        for name, shape in zip(_hf_names(mapping, megatron), mapping.hf_shapes(model), strict=True)
    ]


@torch.no_grad()
def stream_weights(chunks: Chunks, model: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) on the main rank; nothing on the others, which iterate all the same. Call it on all ranks."""
    held: dict[str, Parameter] = {}
    for name, parameter in named_parameters(unwrap(chunks)):
        held.setdefault(name, parameter)  # a tied output layer's copy is the embedding
    owners = all_gather_object(set(held))
    if parallel_state.get_data_parallel_rank() != 0:
        return
    for mapping, name in _in_order(model):
        source = next(rank for rank, names in enumerate(owners) if name in names)
        shape = mapping.megatron_shape(model)
        whole = _whole_on_main(source, held.get(name), shape, name, next(iter(held.values())))
        if whole is not None:
            yield from zip(_hf_names(mapping, name), mapping.to_hf(whole, model), strict=True)


def _in_order(model: ModelConfig) -> Iterator[Placed]:
    """What is not of a layer, then layer by layer: vLLM keeps a layer's tensors until it has all of them."""
    mappings = [
        each for each in model.family.mappings
        if not (model.tied_embeddings and each.megatron == "output_layer.weight")
    ]  # fmt: skip
    yield from ((each, each.megatron) for each in mappings if "*" not in each.megatron)
    for layer in range(model.num_layers):
        yield from ((each, each.megatron.replace("*", str(layer))) for each in mappings if "*" in each.megatron)


def _hf_names(mapping: Mapping, megatron: str) -> list[str]:
    """Hugging Face's names of what one tensor of Megatron's holds."""
    if "*" not in mapping.megatron:
        return list(mapping.hf)
    before = len(mapping.megatron.partition("*")[0])
    layer = megatron[before:].partition(".")[0]
    return [name.replace("*", layer) for name in mapping.hf]


def _whole_on_main(
    source: int, ours: Parameter | None, shape: Sequence[int], name: str, like: Parameter
) -> Tensor | None:
    """The whole tensor on the main rank, None elsewhere; `source`: the first rank of the stage that has it."""
    whole = None if ours is None else _whole_on_first(ours, name)
    rank = dist.get_rank()
    if source == rank == 0:
        return whole
    if rank == source:
        assert whole is not None
        dist.send(whole.contiguous(), 0)
    elif rank == 0:
        received = like.new_empty(shape)
        dist.recv(received, source)
        return received
    return None


def _whole_on_first(parameter: Parameter, name: str) -> Tensor | None:
    """The whole tensor on the first tensor-parallel rank of the stage, None on the others."""
    size = parallel_state.get_tensor_model_parallel_world_size()
    is_first = parallel_state.get_tensor_model_parallel_rank() == 0
    values = parameter.detach()
    if size == 1 or not getattr(parameter, "tensor_model_parallel", False):
        return values if is_first else None
    parts = [torch.empty_like(values) for _ in range(size)] if is_first else None
    first = parallel_state.get_tensor_model_parallel_src_rank()
    dist.gather(values.contiguous(), parts, dst=first, group=parallel_state.get_tensor_model_parallel_group())
    return None if parts is None else unshard(parts, parameter.partition_dim, name)  # type: ignore[attr-defined]
