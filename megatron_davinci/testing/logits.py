"""Logits of given documents by a model under training: what comparisons with transformers need."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_davinci.data.packed import PackedBatch
from megatron_davinci.train.step import Trainer, packed_seq_params


def pack_documents_for_logits(documents: Sequence[Sequence[int]]) -> PackedBatch:
    """Documents end to end in one row, each a segment; nothing is predicted."""
    tokens = torch.tensor([list(chain.from_iterable(documents))])
    lengths = torch.tensor([0] + [len(document) for document in documents])
    positions = torch.cat([torch.arange(len(document)) for document in documents])[None]
    return PackedBatch(
        tokens, tokens, torch.zeros(tokens.shape), positions, lengths.cumsum(0).int(), int(lengths.max())
    )


@torch.no_grad()
def packed_logits(trainer: Trainer, batch: PackedBatch) -> Tensor | None:
    """Logits (T, vocabulary shard) on the last pipeline stage, None elsewhere; through Megatron's own schedule."""
    outputs = get_forward_backward_func()(
        forward_step_func=_forward,
        data_iterator=iter([batch.to(trainer.device)]),
        model=[trainer.model],
        num_microbatches=1,
        seq_length=batch.tokens.size(1),
        micro_batch_size=1,
        forward_only=True,
        collect_non_loss_data=True,
    )
    return outputs[0] if outputs else None


def _forward(batches: Iterator[PackedBatch], model: torch.nn.Module) -> tuple[Tensor, Any]:
    batch = next(batches)
    logits = model(batch.tokens, batch.position_ids, None, packed_seq_params=packed_seq_params(batch))
    return logits, lambda output, non_loss_data: output[0].detach().clone()
