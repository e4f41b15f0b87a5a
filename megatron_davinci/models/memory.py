"""Bytes that a rank's share of the model takes between two steps. Torch-free."""

from dataclasses import dataclass

from data_prep.io.arithmetic import ceil_div
from megatron_davinci.models.layout import pipeline_ranks
from megatron_davinci.models.parallel_layout import MegatronOptions
from megatron_davinci.models.sizes import ModelSizes

GIB = 1 << 30


@dataclass(frozen=True)
class StateBytes:
    """Bytes of the fullest rank. `kept`: weights and gradients, on every replica; `shared`: what replicas may share.

    `gathered`: what comes on top while a checkpoint is made, besides each rank's share of as much: Megatron gathers the
    distributed optimizer's state on every GPU, a bucket at a time, which without overlap_grad_reduce is all of it.
    Activations and the buffers of collectives come on top: what does not fit by this count cannot fit.
    """

    kept: int
    shared: int
    gathered: int = 0

    def of_each(self, sharers: int) -> int:
        """Bytes a rank where so many ranks hold the same weights."""
        return self.kept + ceil_div(self.shared, sharers)

    def while_saving(self, sharers: int) -> int:
        """Bytes per rank at the moment of a checkpoint at which they are most."""
        return self.of_each(sharers) + self.gathered + self.gathered // sharers


def state_bytes(model: ModelSizes, megatron: MegatronOptions) -> StateBytes:
    """Bytes that Megatron's buffers and Adam hold.

    In bf16 weights have an fp32 main copy, and gradients add up in fp32 unless grad_reduce_in_fp32 is off.
    """
    parameters = max(rank.parameters for rank in pipeline_ranks(model, megatron.layout))
    weight = 2 if megatron.bf16 else 4
    gradient = 2 if megatron.bf16 and not megatron.grad_reduce_in_fp32 else 4
    optimizer = 2 * 4 + (4 if megatron.bf16 else 0)  # two moments, and the main copy
    if megatron.use_distributed_optimizer:
        gathered = 0 if megatron.overlap_grad_reduce else 4 * parameters
        return StateBytes(parameters * (weight + gradient), parameters * optimizer, gathered)
    return StateBytes(parameters * (weight + gradient + optimizer), 0)
