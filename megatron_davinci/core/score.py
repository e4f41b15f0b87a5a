"""Log-probabilities of one sequence by the model under training, through the forward pass that it trains with."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from data_prep.io.arithmetic import ceil_to_multiple
from megatron_davinci.core.attention.packed import PackedSegments
from megatron_davinci.core.gpt import LabelScores
from megatron_davinci.core.groups import all_gather_object
from megatron_davinci.core.step import run_schedule
from megatron_davinci.models.parallel_layout import ParallelLayout


@torch.no_grad()
def score_continuation(
    chunks: Sequence[torch.nn.Module],
    layout: ParallelLayout,
    device: torch.device,
    prompt: Sequence[int],
    tokens: Sequence[int],
) -> list[float]:
    """Log-probability of each of `tokens`, in nats, behind `prompt` and those before it; on every rank. All call it."""
    used = len(prompt) + len(tokens)
    width = ceil_to_multiple(used, layout.tensor)
    ids = torch.tensor([[*prompt, *tokens, *[0] * (width - used)]], device=device)
    positions = torch.arange(width, device=device)[None]
    segments = PackedSegments.of([0, width], device)
    labels = LabelScores(
        torch.arange(len(prompt) - 1, used - 1, device=device), torch.tensor(list(tokens), device=device)
    )

    def forward(batches: Iterator[None], chunk: Any) -> tuple[Tensor, Any]:
        next(batches)
        output = chunk(ids, positions, None, labels=labels, packed_seq_params=segments)
        return output, lambda output, non_loss_data: output[0]

    copies = [None] * layout.microbatch_multiple
    how = {"forward_only": True, "collect_non_loss_data": True}
    found = run_schedule(chunks, forward, copies, [width] * len(copies), **how)
    every = all_gather_object(found[0].tolist() if found else None)
    return next(scores for scores in every if scores is not None)
