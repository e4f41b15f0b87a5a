"""One optimizer step over one global batch, through Megatron's pipeline schedules."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_davinci.data.batches import Sequence, StageBatches, share_of_rank
from megatron_davinci.data.packed import PackedBatch, pack_micro_batch
from megatron_davinci.objectives.ntp import next_token_loss

ForwardOutput = tuple[Tensor, Any]


@dataclass(frozen=True)
class Trainer:
    """A model and what one step needs of it. `micro_batch_size` counts packed sequences of `seq_length` tokens."""

    model: DistributedDataParallel
    config: TransformerConfig
    device: torch.device
    seq_length: int
    micro_batch_size: int

    def __post_init__(self) -> None:
        self.config.finalize_model_grads_func = finalize_undivided

    def gradients(self, stage: StageBatches, sequences: list[Sequence]) -> float:
        """Fill every parameter's main_grad with the gradient of the global batch's loss; returns that loss."""
        self.model.zero_grad_buffer()
        # The optimizer leaves each .grad pointing at its buffer; autograd would add the first micro-batch in twice.
        self.model.zero_grad(set_to_none=True)
        label_weight = 1.0 / max(1, stage.num_labels(sequences))
        share = list(
            share_of_rank(
                sequences,
                parallel_state.get_data_parallel_rank(),
                parallel_state.get_data_parallel_world_size(),
                self.micro_batch_size,
            )
        )
        batches = (pack_micro_batch(stage, part, self.seq_length, label_weight).to(self.device) for part in share)
        losses = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=batches,
            model=[self.model],
            num_microbatches=len(share),
            seq_length=self.seq_length * self.micro_batch_size,
            micro_batch_size=1,  # one row; packed sequences lie end to end in it
            forward_only=False,
        )
        return global_loss([entry["loss"] for entry in losses], self.device)

    def step(self, optimizer: MegatronOptimizer, stage: StageBatches, sequences: list[Sequence]) -> tuple[float, float]:
        """Gradients, clipping, update; returns the loss and the gradient norm before clipping."""
        loss = self.gradients(stage, sequences)
        _, grad_norm, _ = optimizer.step()
        return loss, float(grad_norm) if grad_norm is not None else float("nan")


def forward_step(batches: Iterator[PackedBatch], model: DistributedDataParallel) -> ForwardOutput:
    """Megatron's forward_step_func: on the last stage the output is every row's loss (1, T), elsewhere hidden states.

    Every stage takes the batch, because every stage's attention needs its cu_seqlens.
    """
    batch = next(batches)
    output = model(
        batch.tokens, batch.position_ids, None, labels=batch.labels, packed_seq_params=packed_seq_params(batch)
    )
    return output, partial(weighted_loss, batch.loss_weights)


def packed_seq_params(batch: PackedBatch) -> PackedSeqParams:
    """The segments of a batch as Megatron's attention and rotary embedding read them."""
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=batch.cu_seqlens,
        cu_seqlens_kv=batch.cu_seqlens,
        max_seqlen_q=batch.max_seqlen,
        max_seqlen_kv=batch.max_seqlen,
    )


def weighted_loss(loss_weights: Tensor, row_losses: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(sum of w * term, number of tokens, metrics): given three, Megatron divides by no number of its own."""
    predicts = loss_weights > 0
    loss = next_token_loss(-row_losses.float()[predicts], loss_weights[predicts])
    # The schedule scales the loss it gets in place, so what is logged is a copy.
    return loss, predicts.sum().int(), {"loss": loss.detach().clone()}


def finalize_undivided(model: list[DistributedDataParallel], _num_tokens: Tensor | None, **kwargs: Any) -> None:
    """Reduce gradients over ranks without dividing them: the weights of the loss are global already."""
    finalize_model_grads(model, None, **kwargs)


def global_loss(losses: list[Tensor], device: torch.device) -> float:
    """The global batch's loss, on every rank: summed over micro-batches and data-parallel ranks of the last stage."""
    total = torch.stack(losses).sum() if losses else torch.zeros((), device=device)
    dist.all_reduce(total, group=parallel_state.get_data_parallel_group())
    dist.broadcast(
        total,
        src=parallel_state.get_pipeline_model_parallel_last_rank(),
        group=parallel_state.get_pipeline_model_parallel_group(),
    )
    return total.item()
