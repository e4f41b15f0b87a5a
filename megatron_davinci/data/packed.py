"""Packed sequences as tensors. T = tokens of one micro-batch's row: micro_batch_size * seq_length."""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_davinci.data.batches import Sequence, StageBatches


@dataclass(frozen=True)
class PackedBatch:
    """One micro-batch: documents end to end, each its own segment, and padding as segments of its own.

    tokens, labels (1, T) int64; loss_weights (1, T) float32, 0 where nothing is predicted; position_ids (1, T) int64,
    from 0 in every segment; cu_seqlens (segments + 1,) int32 from 0 to T; max_seqlen in tokens.
    """

    tokens: Tensor
    labels: Tensor
    loss_weights: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int

    def to(self, device: torch.device) -> "PackedBatch":
        """The same batch on another device."""
        moved = {name: getattr(self, name).to(device) for name in self.__dataclass_fields__ if name != "max_seqlen"}
        return PackedBatch(max_seqlen=self.max_seqlen, **moved)


def pack_micro_batch(
    stage: StageBatches, sequences: list[Sequence], seq_length: int, label_weight: float
) -> PackedBatch:
    """Lay sequences end to end; every label weighs `label_weight`, fixed from the count of the whole global batch.

    A span that ends inside its document predicts the document's next token, which lies in another sequence.
    """
    width = len(sequences) * seq_length
    tokens, labels = torch.zeros(1, width, dtype=torch.int64), torch.zeros(1, width, dtype=torch.int64)
    weights = torch.zeros(1, width)
    starts = []
    for number, sequence in enumerate(sequences):
        at = number * seq_length
        for span in sequence:
            ids = torch.from_numpy(stage.tokens(span).copy())
            tokens[0, at : at + span.length] = ids[: span.length]
            labels[0, at : at + len(ids) - 1] = ids[1:]
            weights[0, at : at + len(ids) - 1] = label_weight
            starts.append(at)
            at += span.length
        if at < (number + 1) * seq_length:
            starts.append(at)  # padding never joins a document
    cu_seqlens = torch.tensor([*starts, width], dtype=torch.int32)
    segment_lengths = cu_seqlens.diff()
    position_ids = torch.arange(width) - torch.repeat_interleave(cu_seqlens[:-1].long(), segment_lengths)
    return PackedBatch(tokens, labels, weights, position_ids[None], cu_seqlens, int(segment_lengths.max()))
