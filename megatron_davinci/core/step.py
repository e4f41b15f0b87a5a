"""One pass over a global batch, through Megatron's pipeline schedules: gradients and an update, or losses alone."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import get_model_config
from torch import Tensor

from megatron_davinci.core.counts import BatchCounts
from megatron_davinci.core.optimizer import Chunks, clip_and_step
from megatron_davinci.core.pipeline import with_known_shapes
from megatron_davinci.core.timers import Timers

ForwardOutput = tuple[Any, Callable[..., Any]]
ForwardStep = Callable[[Iterator[Any], DistributedDataParallel], ForwardOutput]


@dataclass(frozen=True)
class GlobalBatch:
    """This rank's micro-batches of one optimizer step, each one row, `widths` their tokens; and what becomes of them.

    `forward`: Megatron's forward_step_func, whose loss function reports a scalar for each name of `reports`, the loss
    among them; sums over all micro-batches and ranks come out. `counts` are those of the global batch.
    """

    forward: ForwardStep
    micro_batches: Sequence[Any]
    widths: Sequence[int]
    counts: BatchCounts
    reports: tuple[str, ...] = ("loss",)
    metrics: Callable[[Mapping[str, float]], dict[str, Any]] = lambda sums: {}
    """From the sums of what is reported to the metrics that this step adds: numbers, texts, or dicts of numbers by
    name. Raises FloatingPointError, on every rank, where they show that the step must not be kept."""
    losses: Mapping[str, Callable[[], "GlobalBatch"]] = field(default_factory=dict)
    """Name -> the same rows with one loss alone, for those whose gradient norm is to be measured this step."""


@dataclass(frozen=True)
class StepResult:
    """`loss` in nats; `grad_norm`: before clipping; `sums`: of what is reported; `skipped`: nothing was updated."""

    loss: float
    grad_norm: float
    counts: BatchCounts
    sums: Mapping[str, float]
    skipped: bool


@dataclass(frozen=True)
class Trainer:
    """The chunks of a model that this rank holds, and what one step needs of them."""

    chunks: Chunks
    config: TransformerConfig
    device: torch.device
    timers: Timers = field(default_factory=Timers)

    def __post_init__(self) -> None:
        self.config.finalize_model_grads_func = self._reduce_undivided

    def step(self, optimizer: MegatronOptimizer, batch: GlobalBatch) -> StepResult:
        """Gradients, clipping, update: none where the loss or a gradient is not finite, which all ranks see alike."""
        sums = self.gradients(batch)
        with self.timers("optimizer"):
            optimizer.prepare_grads()
            grad_norm = float(optimizer.get_grad_norm())
            skipped = not (math.isfinite(sums["loss"]) and math.isfinite(grad_norm))
            if not skipped:
                clip_and_step(optimizer, grad_norm)
        return StepResult(sums["loss"], grad_norm, batch.counts, sums, skipped)

    def gradients(self, batch: GlobalBatch) -> dict[str, float]:
        """Fill every parameter's main_grad with the gradient of a global batch's loss; gives the reported sums.

        With the distributed optimizer each rank ends up with the sums of its own part of the buffers.
        """
        self.zero_gradients()
        return self.add_gradients(batch)

    def add_gradients(self, batch: GlobalBatch) -> dict[str, float]:
        """Add the gradient of a global batch's loss to what the buffers hold; gives the reported sums."""
        with self.timers("forward_backward"):
            return self._run(batch)

    def gradient_norm(self, optimizer: MegatronOptimizer, batch: GlobalBatch) -> float:
        """Norm of the gradient of a global batch's loss, over all ranks; weights stay as they are."""
        self.gradients(batch)
        optimizer.prepare_grads()
        return float(optimizer.get_grad_norm())

    def zero_gradients(self) -> None:
        """Before the first micro-batch of a step."""
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
            # FP32Optimizer leaves .grad pointing at its buffer; autograd would add the first micro-batch in twice.
            chunk.zero_grad(set_to_none=True)

    @torch.no_grad()
    def evaluate(self, batch: GlobalBatch) -> dict[str, float]:
        """The sums that are reported; no gradient."""
        return self._run(batch, forward_only=True)

    def _run(self, batch: GlobalBatch, **how: Any) -> dict[str, float]:
        """Gradients add up in the buffers."""
        reports = run_schedule(self.chunks, batch.forward, batch.micro_batches, batch.widths, **how)
        return global_sums(reports, batch.reports, self.device)

    def _reduce_undivided(self, chunks: Chunks, _num_tokens: Tensor | None, **kwargs: Any) -> None:
        """Reduce gradients over ranks without dividing them: the weights of the loss are global already."""
        with self.timers("reduce_gradients"):
            finalize_model_grads(chunks, None, **kwargs)


def run_schedule(
    chunks: Sequence[torch.nn.Module], forward: ForwardStep, batches: Sequence[Any], widths: Sequence[int], **how: Any
) -> list[Any]:
    """Megatron's schedule of this layout over micro-batches of one row each.

    `widths` (micro-batches,): tokens of each, over all context ranks; the same on all ranks of a replica. `how` goes to
    the schedule. Gives what `forward`'s loss function reports, on the last pipeline stage.
    """
    assert len(widths) == len(batches)
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        how |= with_known_shapes(get_model_config(chunks[0]), widths, len(chunks))
    several = len(chunks) > 1  # each chunk of an interleaved stage goes through all micro-batches
    reports: list[Any] = get_forward_backward_func()(
        forward_step_func=forward,
        data_iterator=[iter(batches) for _ in chunks] if several else iter(batches),
        model=chunks if several else chunks[0],
        num_microbatches=len(batches),
        seq_length=max(widths),  # nothing is made of it: shapes are known
        micro_batch_size=1,
        **{"forward_only": False, **how},
    )
    return reports


def loss_and_reports(loss: Tensor, **others: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """What Megatron takes from a loss function: given three, it divides by no number of its own."""
    # The schedule scales the loss it gets in place, so what is logged is a copy.
    reports = {name: value.detach().clone() for name, value in {"loss": loss, **others}.items()}
    return loss, torch.ones((), dtype=torch.int, device=loss.device), reports


def global_sums(
    reports: Sequence[Mapping[str, Tensor]], names: Sequence[str], device: torch.device
) -> dict[str, float]:
    """Sums of what the last stage reports over micro-batches, data and context ranks; on every rank."""
    sums = [torch.stack([report[name] for report in reports]).sum() for name in names] if reports else []
    total = torch.stack(sums) if sums else torch.zeros(len(names), device=device)
    dist.all_reduce(total, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    dist.broadcast(
        total,
        src=parallel_state.get_pipeline_model_parallel_last_rank(),
        group=parallel_state.get_pipeline_model_parallel_group(),
    )
    return dict(zip(names, total.tolist(), strict=True))
