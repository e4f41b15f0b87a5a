"""What one global batch holds, counted where it is consumed and summed over all data-parallel ranks."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_davinci.data.documents import Documents, PackedSequence
from megatron_davinci.data.ledger import Tally, tally_by_epoch

_LOW = (1 << 32) - 1


@dataclass(frozen=True)
class BatchCounts:
    """`tokens` of documents, `labels` among them that are predicted, `rows` that were computed, padding included.

    `squared_lengths`: the sum over spans of length squared, which attention's work is proportional to; `tallies`: what
    the ledger enters, by epoch.
    """

    tokens: int
    labels: int
    rows: int
    squared_lengths: int
    tallies: dict[int, Tally]


def count_batch(
    documents: Documents, share: Sequence[PackedSequence], epochs: Sequence[int], rows: int, device: torch.device
) -> BatchCounts:
    """Count this rank's `share`, which takes so many `rows`, and add up over the ranks.

    `epochs` are those of the whole global batch.
    """
    spans = [span for sequence in share for span in sequence]
    ours = tally_by_epoch(share, documents.lengths)
    numbers = [
        sum(int(documents.predicted(span).sum()) for span in spans),
        sum(span.length**2 for span in spans),
        rows,
    ]
    for epoch in epochs:
        tally = ours.get(epoch, Tally())
        # Half a fingerprint each: sums of 32-bit numbers cannot overflow.
        numbers += [tally.documents, tally.tokens, tally.fingerprint & _LOW, tally.fingerprint >> 32]
    summed = torch.tensor(numbers, dtype=torch.int64, device=device)
    dist.all_reduce(summed, group=parallel_state.get_data_parallel_group())
    labels, squared_lengths, rows, *rest = summed.tolist()
    tallies = {
        epoch: Tally() + Tally(count, tokens, low + (high << 32))
        for epoch, count, tokens, low, high in zip(epochs, *(rest[i::4] for i in range(4)), strict=True)
    }
    return BatchCounts(sum(t.tokens for t in tallies.values()), labels, rows, squared_lengths, tallies)
