"""Packed documents as tensors. T = tokens of one micro-batch's row; N = labels in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from data_prep.io.arithmetic import ceil_to_multiple
from megatron_davinci.data.documents import Documents, Span

_PADDING_SEGMENT = 512


@dataclass(frozen=True)
class PackedBatch:
    """One micro-batch: documents end to end, each its own segment, and padding as segments of its own.

    tokens, position_ids (1, T) int64, the latter from 0 in every segment; boundaries: segments + 1 numbers from 0 to T.
    Of what is predicted, (row, label, weight) triples: rows, labels (N,) int64, weights (N,) float32; corpora (N,)
    int64: which of `Documents.prefixes` each is of.
    """

    tokens: Tensor
    position_ids: Tensor
    boundaries: Sequence[int]
    rows: Tensor
    labels: Tensor
    weights: Tensor
    corpora: Tensor

    def to(self, device: torch.device) -> "PackedBatch":
        """Copy the batch to another device."""
        names = ("tokens", "position_ids", "rows", "labels", "weights", "corpora")
        return PackedBatch(boundaries=self.boundaries, **{name: getattr(self, name).to(device) for name in names})

    def of_context_rank(self, rank: int, context: int) -> "PackedBatch":
        """The rows that one of `context` context-parallel ranks holds; boundaries stay those of the whole."""
        if context == 1:
            return self
        held = rows_of_context_rank(self.boundaries, rank, context)
        place = torch.full((self.tokens.size(1),), -1)
        place[held] = torch.arange(len(held))
        rows = place[self.rows]
        ours = rows >= 0
        return PackedBatch(
            self.tokens[:, held],
            self.position_ids[:, held],
            self.boundaries,
            rows[ours],
            self.labels[ours],
            self.weights[ours],
            self.corpora[ours],
        )


def rows_of_context_rank(boundaries: Sequence[int], rank: int, context: int) -> Tensor:
    """Rows (T / context,) of one rank: of each segment's 2 * context chunks, `rank` and 2 * context - 1 - rank."""
    pieces = []
    for start, end in pairwise(boundaries):
        chunk, rest = divmod(end - start, 2 * context)
        assert rest == 0, "context parallelism needs segments that are multiples of 2 * CP"
        for number in (rank, 2 * context - 1 - rank):
            pieces.append(torch.arange(start + number * chunk, start + (number + 1) * chunk))
    return torch.cat(pieces)


def padding_starts(start: int, stop: int, alignment: int = 1) -> range:
    """Where the segments of padding from `start` to `stop` begin.

    Padding never joins a document, and is cut small: attention over a whole row of it would cost the most of all.
    """
    return range(start, stop, ceil_to_multiple(_PADDING_SEGMENT, alignment))


def pack_micro_batch(
    documents: Documents, spans: Sequence[Span], width: int, alignment: int, label_weight: float
) -> PackedBatch:
    """Lay spans end to end in a row of `width` tokens, which pads the rest.

    Every label weighs `label_weight`, fixed from the count of the whole global batch. A span takes room up to a
    multiple of `alignment`. One that ends inside its document predicts the document's next token, which lies in another
    row.
    """
    tokens = torch.zeros(1, width, dtype=torch.int64)
    starts: list[int] = []
    rows, labels, corpora = ([torch.zeros(0, dtype=torch.int64)] for _ in range(3))
    at = 0
    for span in spans:
        ids = torch.from_numpy(documents.tokens(span))
        predicted = torch.from_numpy(documents.predicted(span))
        tokens[0, at : at + span.length] = ids[: span.length]
        rows.append(predicted.nonzero()[:, 0] + at)
        labels.append(ids[1:][predicted])
        corpora.append(torch.full_like(rows[-1], documents.prefix_index(span.document)))
        starts.append(at)
        at += ceil_to_multiple(span.length, alignment)
    assert at <= width
    starts.extend(padding_starts(at, width, alignment))
    boundaries = [*starts, width]
    ends = torch.tensor(boundaries)
    position_ids = torch.arange(width) - torch.repeat_interleave(ends[:-1], ends.diff())
    all_rows = torch.cat(rows)
    weights = torch.full(all_rows.shape, label_weight, dtype=torch.float32)
    return PackedBatch(tokens, position_ids[None], boundaries, all_rows, torch.cat(labels), weights, torch.cat(corpora))
