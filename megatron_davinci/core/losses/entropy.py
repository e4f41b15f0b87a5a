"""Entropy of the likeliest tokens, from hidden states: what difficulty is measured by. No gradient.

N = rows, h = hidden size, V = vocabulary shard of this rank, k = how many tokens count.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_davinci.core.losses.token_scores import CHUNK_ELEMENTS


@torch.no_grad()
def top_entropies(
    hidden: Tensor, weight: Tensor, k: int, group: dist.ProcessGroup | None = None, chunk_elements: int = CHUNK_ELEMENTS
) -> Tensor:
    """Entropies (N,) float32, in nats, of the k likeliest tokens' probabilities, renormalized to add up to 1.

    hidden (N, h); weight (V, h); `group` holds the ranks with the other shards.
    """
    rows = max(1, chunk_elements // weight.size(0))
    best = [_largest((hidden[at : at + rows] @ weight.t()).float(), k) for at in range(0, len(hidden), rows)]
    logits = torch.cat(best) if best else hidden.new_zeros(0, min(k, weight.size(0)), dtype=torch.float32)
    if group is not None and group.size() > 1:
        logits = _largest(torch.cat(_from_all(logits, k, group), 1), k)
    return torch.special.entr(logits.softmax(1)).sum(1)


def _largest(logits: Tensor, k: int) -> Tensor:
    return logits.topk(min(k, logits.size(1)), dim=1, sorted=False).values


def _from_all(logits: Tensor, k: int, group: dist.ProcessGroup) -> list[Tensor]:
    """What each shard has found (N, k); one with fewer tokens fills up with what gets no probability."""
    filled = logits.new_full((len(logits), k), -torch.inf)
    filled[:, : logits.size(1)] = logits
    parts = [torch.empty_like(filled) for _ in range(group.size())]
    dist.all_gather(parts, filled, group=group)
    return parts
