"""Whole tensors of a model that is split over ranks, for comparison with a single process."""

from collections.abc import Callable
from operator import attrgetter

import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor
from torch.nn import Parameter

from megatron_davinci.core.groups import all_gather_object
from megatron_davinci.core.optimizer import unwrap
from megatron_davinci.core.sharding import named_parameters, unshard
from megatron_davinci.core.step import Trainer

Shard = tuple[int, int | None, Tensor]  # tensor-parallel rank, dimension that is split, values


def gather_gradients(trainer: Trainer) -> dict[str, Tensor]:
    """Global name -> whole gradient, in the buffers' type, on every rank.

    The distributed optimizer leaves each rank the sums of its own part of every bucket: those are put together first.
    """
    for chunk in trainer.chunks:
        if chunk.ddp_config.use_distributed_optimizer:
            for bucket in (bucket for group in chunk.bucket_groups for bucket in group.buckets):
                parts = bucket.grad_data.chunk(chunk.intra_dp_cp_group.size())
                ours = parts[chunk.intra_dp_cp_group.rank()].clone()
                dist.all_gather(list(parts), ours, group=chunk.intra_dp_cp_group)
    return gather_parameters(trainer, attrgetter("main_grad"))


def gather_parameters(trainer: Trainer, read: Callable[[Parameter], Tensor]) -> dict[str, Tensor]:
    """Global name -> whole tensor of what `read` gives for a parameter, on every rank.

    Raises AssertionError where ranks that hold the same shard disagree.
    """
    rank = parallel_state.get_tensor_model_parallel_rank()
    mine: dict[str, Shard] = {}
    for name, parameter in named_parameters(unwrap(trainer.chunks)):
        split = parameter.partition_dim if getattr(parameter, "tensor_model_parallel", False) else None  # type: ignore[attr-defined]
        mine[name] = (rank, split, read(parameter).detach().clone())
    every = all_gather_object(mine)
    return {
        name: _whole(name, [held[name] for held in every if name in held]) for name in {k for e in every for k in e}
    }


def _whole(name: str, shards: list[Shard]) -> Tensor:
    by_rank: dict[int, Tensor] = {}
    for rank, _, values in shards:
        assert rank not in by_rank or by_rank[rank].equal(values), f"replicas of {name} differ"
        by_rank[rank] = values
    parts = [by_rank[rank] for rank in sorted(by_rank)]
    assert shards[0][1] is not None or all(part.equal(parts[0]) for part in parts), f"replicas of {name} differ"
    return unshard(parts, shards[0][1], name)
