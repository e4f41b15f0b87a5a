"""Next-token prediction as work for the trainer: packed documents, each label with the same weight."""

from collections.abc import Iterator
from functools import partial

import torch
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor

from megatron_davinci.attention.packed import PackedSegments
from megatron_davinci.data.batches import StageBatches, share_of_rank
from megatron_davinci.data.documents import Documents, PackedSequence
from megatron_davinci.data.packed import PackedBatch, pack_micro_batch
from megatron_davinci.models.gpt import Predictions
from megatron_davinci.objectives.ntp import next_token_loss
from megatron_davinci.recipe import StageRecipe
from megatron_davinci.train.counts import count_batch
from megatron_davinci.train.parallel import context_rank, data_rank
from megatron_davinci.train.step import ForwardOutput, Work, loss_and_reports


def next_token_batch(stage: StageBatches, batch: int, device: torch.device) -> Work:
    """One global batch of a stage."""
    return next_token_work(stage.documents, stage.sequences(batch), stage.recipe, stage.alignment, device)


def next_token_work(
    documents: Documents, sequences: list[PackedSequence], recipe: StageRecipe, alignment: int, device: torch.device
) -> Work:
    """Packed sequences as this rank's micro-batches; the loss is the mean over the labels of all ranks, in nats."""
    rank, size = data_rank()
    width = recipe.batch.micro_batch_size * recipe.seq_length
    share = share_of_rank(sequences, rank, size, recipe.batch.micro_batch_size, rounds_of(recipe))
    epochs = sorted({span.epoch for sequence in sequences for span in sequence})
    ours = [sequence for part in share for sequence in part]
    counts = count_batch(documents, ours, epochs, len(share) * size * width, device)
    weight = 1.0 / max(1, counts.labels)
    packed = (pack_micro_batch(documents, part, recipe.seq_length, alignment, weight) for part in share)
    micro_batches = [batch.of_context_rank(*context_rank()).to(device) for batch in packed]
    return Work(forward_step, micro_batches, width, counts)


def rounds_of(recipe: StageRecipe) -> int:
    """Interleaved pipelines need a number of micro-batches that is a multiple of their ranks."""
    return recipe.pipeline_parallel_size if recipe.virtual_pipeline_size else 1


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
    """The sum of w * term, for Megatron."""
    log_probs, _ = scores
    return loss_and_reports(next_token_loss(log_probs, weights))
