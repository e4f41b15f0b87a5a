"""Bytes that a rank's share of the model takes between two steps. Torch-free."""

from dataclasses import dataclass
from typing import Any

from megatron_davinci.models.config import ModelConfig
from megatron_davinci.planning.layout import pipeline_ranks

GIB = 1 << 30


@dataclass(frozen=True)
class StateBytes:
    """Of the fullest rank. `kept`: weights and gradients, on every replica; `shared`: what replicas may share out.

    `gathered`: what comes on top while a checkpoint is made, besides each rank's share of as much: Megatron gathers the
    distributed optimizer's state on every GPU, a bucket at a time, which without overlap_grad_reduce is all of it.
    Activations and the buffers of collectives come on top: what does not fit by this count cannot fit.
    """

    kept: int
    shared: int
    gathered: int = 0

    def of_each(self, sharers: int) -> int:
        """Bytes a rank where so many ranks hold the same weights."""
        return self.kept - (-self.shared // sharers)

    def while_saving(self, sharers: int) -> int:
        """The same, at the moment of a checkpoint at which it is most."""
        return self.of_each(sharers) + self.gathered + self.gathered // sharers


def state_bytes(model: ModelConfig, sizes: tuple[int, int, int | None, int], megatron: dict[str, Any]) -> StateBytes:
    """What Megatron's buffers and Adam hold; `sizes`: tensor, pipeline, virtual pipeline and context.

    In bf16 weights have an fp32 main copy, and gradients add up in fp32 unless grad_reduce_in_fp32 is off.
    """
    parameters = max(rank.parameters for rank in pipeline_ranks(model, *sizes[:3]))
    low = bool(megatron.get("bf16"))
    weight = 2 if low else 4
    gradient = 2 if low and megatron.get("grad_reduce_in_fp32") is False else 4
    optimizer = 2 * 4 + (4 if low else 0)  # two moments, and the main copy
    if megatron.get("use_distributed_optimizer"):
        gathered = 0 if megatron.get("overlap_grad_reduce") else 4 * parameters
        return StateBytes(parameters * (weight + gradient), parameters * optimizer, gathered)
    return StateBytes(parameters * (weight + gradient + optimizer), 0)
