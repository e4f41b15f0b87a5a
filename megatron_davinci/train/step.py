"""One optimizer step over one global batch, through Megatron's pipeline schedules."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_davinci.attention.packed import PackedSegments
from megatron_davinci.data.batches import StageBatches, share_of_rank
from megatron_davinci.data.documents import Documents, PackedSequence
from megatron_davinci.data.packed import PackedBatch, pack_micro_batch
from megatron_davinci.models.gpt import Predictions
from megatron_davinci.objectives.ntp import next_token_loss
from megatron_davinci.recipe import StageRecipe
from megatron_davinci.train.counts import BatchCounts, count_batch
from megatron_davinci.train.optimizer import Chunks
from megatron_davinci.train.parallel import context_rank
from megatron_davinci.train.timers import Timers

ForwardOutput = tuple[Tensor, Any]


@dataclass(frozen=True)
class StepResult:
    """`loss`: mean over the batch's labels, in nats; `grad_norm`: before clipping."""

    loss: float
    grad_norm: float
    counts: BatchCounts


@dataclass(frozen=True)
class Trainer:
    """The chunks of a model that this rank holds, and what one step needs of them."""

    chunks: Chunks
    config: TransformerConfig
    device: torch.device
    timers: Timers = field(default_factory=Timers)

    def __post_init__(self) -> None:
        self.config.finalize_model_grads_func = self._reduce_undivided

    def step(self, optimizer: MegatronOptimizer, stage: StageBatches, batch: int) -> StepResult:
        """Gradients, clipping, update. Raises FloatingPointError on every rank where a number is not finite."""
        loss, counts = self.gradients(stage, batch)
        with self.timers("optimizer"):
            _, grad_norm, _ = optimizer.step()
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise FloatingPointError(
                f"the loss is {loss}, the gradient norm {grad_norm}: nothing of this step is saved; lower the learning "
                "rate, and start again from the last checkpoint"
            )
        return StepResult(loss, float(grad_norm), counts)

    def gradients(self, stage: StageBatches, batch: int) -> tuple[float, BatchCounts]:
        """Fill every parameter's main_grad with the gradient of a global batch's loss; gives that loss and its counts.

        With the distributed optimizer each rank ends up with the sums of its own part of the buffers.
        """
        self.zero_gradients()
        with self.timers("data"):
            batches, counts = self._batches(stage.documents, stage.sequences(batch), stage.recipe, stage.alignment)
        with self.timers("forward_backward"):
            loss = global_loss(self._run(stage.recipe, batches), self.device)
        return loss, counts

    def zero_gradients(self) -> None:
        """Before the first micro-batch of a step."""
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
            # FP32Optimizer leaves .grad pointing at its buffer; autograd would add the first micro-batch in twice.
            chunk.zero_grad(set_to_none=True)

    @torch.no_grad()
    def evaluate(
        self, recipe: StageRecipe, documents: Documents, sequences: list[PackedSequence]
    ) -> tuple[float, BatchCounts]:
        """Mean loss over all labels of some packed sequences, in nats; no gradient."""
        batches, counts = self._batches(documents, sequences, recipe, recipe.document_alignment)
        return global_loss(self._run(recipe, batches, forward_only=True), self.device), counts

    def _batches(
        self, documents: Documents, sequences: list[PackedSequence], recipe: StageRecipe, alignment: int
    ) -> tuple[list[PackedBatch], BatchCounts]:
        """This rank's micro-batches, and what those of all ranks come to; each label weighs 1 / all labels."""
        rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
        multiple = recipe.pipeline_parallel_size if recipe.virtual_pipeline_size else 1
        share = share_of_rank(sequences, rank, size, recipe.batch.micro_batch_size, multiple)
        epochs = sorted({span.epoch for sequence in sequences for span in sequence})
        rows = len(share) * size * recipe.batch.micro_batch_size * recipe.seq_length
        counts = count_batch(documents, [sequence for part in share for sequence in part], epochs, rows, self.device)
        weight = 1.0 / max(1, counts.labels)
        packed = (pack_micro_batch(documents, part, recipe.seq_length, alignment, weight) for part in share)
        return [batch.of_context_rank(*context_rank()).to(self.device) for batch in packed], counts

    def _run(self, recipe: StageRecipe, batches: list[PackedBatch], forward_only: bool = False) -> list[Tensor]:
        """Losses of this rank's micro-batches, on the last pipeline stage; gradients add up in the buffers."""
        width = recipe.seq_length * recipe.batch.micro_batch_size
        losses = run_schedule(self.chunks, forward_step, batches, width, forward_only=forward_only)
        return [entry["loss"] for entry in losses]

    def _reduce_undivided(self, chunks: Chunks, _num_tokens: Tensor | None, **kwargs: Any) -> None:
        """Reduce gradients over ranks without dividing them: the weights of the loss are global already."""
        with self.timers("reduce_gradients"):
            finalize_model_grads(chunks, None, **kwargs)


def run_schedule(
    chunks: Chunks, forward: Callable[..., ForwardOutput], batches: Sequence[Any], width: int, **how: Any
) -> list[Any]:
    """Megatron's schedule of this layout over micro-batches of one row each, `width` tokens over all context ranks.

    `how` goes to the schedule. Gives what `forward`'s loss function reports, on the last pipeline stage.
    """
    several = len(chunks) > 1  # each chunk of an interleaved stage goes through all micro-batches
    reports: list[Any] = get_forward_backward_func()(
        forward_step_func=forward,
        data_iterator=[iter(batches) for _ in chunks] if several else iter(batches),
        model=chunks if several else chunks[0],
        num_microbatches=len(batches),
        seq_length=width,  # Megatron itself divides by context and, under sequence parallelism, tensor ranks
        micro_batch_size=1,
        **{"forward_only": False, **how},
    )
    return reports


def forward_step(batches: Iterator[PackedBatch], chunk: DistributedDataParallel) -> ForwardOutput:
    """Megatron's forward_step_func: the last stage scores the labels, the others give hidden states.

    Every stage takes the batch, because every stage's attention needs its cu_seqlens.
    """
    batch = next(batches)
    output = chunk(
        batch.tokens,
        batch.position_ids,
        None,
        labels=Predictions(batch.rows, batch.labels),
        packed_seq_params=PackedSegments.of(batch.boundaries, batch.tokens.device),
    )
    return output, partial(weighted_loss, batch.weights)


def weighted_loss(weights: Tensor, scores: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(sum of w * term, number of tokens, metrics): given three, Megatron divides by no number of its own."""
    log_probs, _ = scores
    loss = next_token_loss(log_probs, weights)
    count = torch.tensor(weights.numel(), dtype=torch.int, device=weights.device)
    # The schedule scales the loss it gets in place, so what is logged is a copy.
    return loss, count, {"loss": loss.detach().clone()}


def global_loss(losses: list[Tensor], device: torch.device) -> float:
    """The global batch's loss, on every rank: summed over micro-batches, data and context ranks of the last stage."""
    total = torch.stack(losses).sum() if losses else torch.zeros((), device=device)
    dist.all_reduce(total, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    dist.broadcast(
        total,
        src=parallel_state.get_pipeline_model_parallel_last_rank(),
        group=parallel_state.get_pipeline_model_parallel_group(),
    )
    return total.item()
