"""Logits of given documents by a model under training: what comparisons with transformers need."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor

from megatron_davinci.core.attention.packed import PackedSegments
from megatron_davinci.core.groups import context_rank
from megatron_davinci.core.step import Trainer, run_schedule
from megatron_davinci.data.packed import PackedBatch


def pack_documents_for_logits(documents: Sequence[Sequence[int]]) -> PackedBatch:
    """Documents end to end in one row, each a segment; nothing is predicted."""
    tokens = torch.tensor([list(chain.from_iterable(documents))])
    boundaries = [0, *torch.tensor([len(document) for document in documents]).cumsum(0).tolist()]
    positions = torch.cat([torch.arange(len(document)) for document in documents])[None]
    nothing = torch.zeros(0, dtype=torch.int64)
    return PackedBatch(tokens, positions, boundaries, nothing, nothing, nothing.float(), nothing)


@torch.no_grad()
def packed_logits(trainer: Trainer, batch: PackedBatch) -> Tensor | None:
    """Logits (T, shard of the padded vocabulary) on the last pipeline stage, None elsewhere, by Megatron's schedule.

    T are the rows of this context-parallel rank.
    """
    ours = batch.of_context_rank(*context_rank()).to(trainer.device)
    copies = [ours] * copies_of_one_batch(trainer)
    how = {"forward_only": True, "collect_non_loss_data": True}
    outputs = run_schedule(trainer.chunks, _forward, copies, [batch.tokens.size(1)] * len(copies), **how)
    return outputs[0] if outputs else None


def copies_of_one_batch(trainer: Trainer) -> int:
    """How often one micro-batch is run: an interleaved pipeline takes a multiple of its ranks."""
    return parallel_state.get_pipeline_model_parallel_world_size() if len(trainer.chunks) > 1 else 1


def _forward(batches: Iterator[PackedBatch], model: torch.nn.Module) -> tuple[Tensor, Any]:
    batch = next(batches)
    segments = PackedSegments.of(batch.boundaries, batch.tokens.device)
    logits = model(batch.tokens, batch.position_ids, None, packed_seq_params=segments)
    return logits, lambda output, non_loss_data: output[0].detach().clone()
