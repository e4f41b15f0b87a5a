"""Logits of given documents by a model under training: what comparisons with transformers need."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_davinci.attention.packed import PackedSegments
from megatron_davinci.data.packed import PackedBatch
from megatron_davinci.train.step import Trainer


def pack_documents_for_logits(documents: Sequence[Sequence[int]]) -> PackedBatch:
    """Documents end to end in one row, each a segment; nothing is predicted."""
    tokens = torch.tensor([list(chain.from_iterable(documents))])
    boundaries = [0, *torch.tensor([len(document) for document in documents]).cumsum(0).tolist()]
    positions = torch.cat([torch.arange(len(document)) for document in documents])[None]
    nothing = torch.zeros(0, dtype=torch.int64)
    return PackedBatch(tokens, positions, boundaries, nothing, nothing, nothing.float())


@torch.no_grad()
def packed_logits(trainer: Trainer, batch: PackedBatch) -> Tensor | None:
    """Logits (T, shard of the padded vocabulary) on the last pipeline stage, None elsewhere, by Megatron's schedule.

    T are the rows of this context-parallel rank.
    """
    context = parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size()
    chunks: Any = trainer.chunks
    ours = batch.of_context_rank(*context).to(trainer.device)
    copies = parallel_state.get_pipeline_model_parallel_world_size() if len(chunks) > 1 else 1
    outputs = get_forward_backward_func()(
        forward_step_func=_forward,
        data_iterator=[iter([ours] * copies) for _ in chunks] if len(chunks) > 1 else iter([ours]),
        model=chunks if len(chunks) > 1 else chunks[0],
        num_microbatches=copies,
        seq_length=batch.tokens.size(1),
        micro_batch_size=1,
        forward_only=True,
        collect_non_loss_data=True,
    )
    return outputs[0] if outputs else None


def _forward(batches: Iterator[PackedBatch], model: torch.nn.Module) -> tuple[Tensor, Any]:
    batch = next(batches)
    segments = PackedSegments.of(batch.boundaries, batch.tokens.device)
    logits = model(batch.tokens, batch.position_ids, None, packed_seq_params=segments)
    return logits, lambda output, non_loss_data: output[0].detach().clone()
