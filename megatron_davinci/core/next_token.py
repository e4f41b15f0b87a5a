"""Objective ntp: packed documents, and each label of the global batch has the same weight."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor

from megatron_davinci.core.attention.packed import PackedSegments
from megatron_davinci.core.counts import count_batch
from megatron_davinci.core.gpt import LabelScores
from megatron_davinci.core.groups import context_rank, data_rank
from megatron_davinci.core.losses.next_token import next_token_loss
from megatron_davinci.core.objective import Objective
from megatron_davinci.core.step import ForwardOutput, GlobalBatch, loss_and_reports
from megatron_davinci.data.batches import StageBatches
from megatron_davinci.data.documents import Documents, PackedSequence
from megatron_davinci.data.packed import PackedBatch, pack_micro_batch
from megatron_davinci.data.rows import RowRules


class NextTokenObjective(Objective):
    """Next-token prediction: the mean over all labels of the global batch."""

    def batch(self, step: int) -> GlobalBatch:
        """See `Objective`."""
        with self.trainer.timers("data"):
            return next_token_batch(self.stage, step, self.trainer.device)


def next_token_batch(stage: StageBatches, step: int, device: torch.device) -> GlobalBatch:
    """The global batch of one step of a stage, packed."""
    names = stage.corpus_names if len(stage.corpus_names) > 1 else ()
    return pack_next_token_batch(stage.documents, stage.units(step), stage.rules, device, names)


def pack_next_token_batch(
    documents: Documents,
    units: list[PackedSequence],
    rules: RowRules,
    device: torch.device,
    corpus_names: Sequence[str] = (),
) -> GlobalBatch:
    """Units as this rank's micro-batches, dealt by `rules`; the loss is the mean over the labels of all ranks, in nats.

    `corpus_names`: of `documents.prefixes`, to report the loss on each too.
    """
    rank, size = data_rank()
    share = rules.deal([rules.unit_of(unit) for unit in units], size)[rank]
    rows = [[span for number in row.units for span in units[number]] for row in share]
    widths = [row.width for row in share]
    epochs = sorted({span.epoch for unit in units for span in unit})
    counts = count_batch(documents, rows, epochs, sum(widths), device)
    weight = 1.0 / max(1, counts.labels)
    packed = (
        pack_micro_batch(documents, row, width, rules.document_alignment, weight)
        for row, width in zip(rows, widths, strict=True)
    )
    micro_batches = [batch.of_context_rank(*context_rank()).to(device) for batch in packed]
    return GlobalBatch(
        partial(next_token_forward_step, num_corpora=len(corpus_names)),
        micro_batches,
        widths,
        counts,
        reports=("loss", *_reports_of(len(corpus_names))),
        metrics=partial(_losses_by_corpus, corpus_names),
    )


def next_token_forward_step(
    batches: Iterator[PackedBatch], chunk: DistributedDataParallel, num_corpora: int = 0
) -> ForwardOutput:
    """Megatron's forward_step_func: the last stage scores the labels, the others give hidden states.

    Every stage takes the batch, because every stage's attention needs its cu_seqlens. The sums of each of `num_corpora`
    corpora are reported beside the loss.
    """
    batch = next(batches)
    output = chunk(
        batch.tokens,
        batch.position_ids,
        None,
        labels=LabelScores(batch.rows, batch.labels),
        packed_seq_params=PackedSegments.of(batch.boundaries, batch.tokens.device),
    )
    return output, partial(weighted_loss, batch.weights, corpora=batch.corpora, num_corpora=num_corpora)


def weighted_loss(
    weights: Tensor, scores: tuple[Tensor, Tensor], corpora: Tensor | None = None, num_corpora: int = 0
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The sum of w * term, and what Megatron takes with it.

    `corpora` (N,): the number of each label's corpus, for each of which the sums of terms and weights are reported too.
    """
    log_probs, _ = scores
    sums: list[Tensor] = []
    if corpora is not None and num_corpora:
        of_each = weights * (corpora == torch.arange(num_corpora, device=corpora.device)[:, None])
        both = torch.stack([-(of_each * log_probs.detach()).sum(1), of_each.sum(1)], dim=1)
        sums = list(both.flatten().unbind())
    reports = dict(zip(_reports_of(num_corpora), sums, strict=True))
    return loss_and_reports(next_token_loss(log_probs, weights), **reports)


def _reports_of(num_corpora: int) -> list[str]:
    return [f"{what}_{number}" for number in range(num_corpora) for what in ("loss", "weight")]


def _losses_by_corpus(names: Sequence[str], sums: Mapping[str, float]) -> dict[str, Any]:
    """The mean loss on the labels of each corpus that the batch has any of."""
    losses = {
        name: sums[f"loss_{number}"] / sums[f"weight_{number}"]
        for number, name in enumerate(names)
        if sums[f"weight_{number}"] > 0
    }
    return {"losses": losses} if losses else {}
