"""A tree as one call of a variable-length kernel: each branch's queries against the gathered keys that they see.

B = branches of all calls; rows as in `attention.tree`. The mask is causal and aligned at the bottom right: the last
query of a branch sees its last key.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_davinci.attention.tree import Call


class Gathered(NamedTuple):
    """Which rows are queries and which are keys, branch after branch; cu_seqlens (B + 1,) int32 cut them up."""

    query_rows: Tensor
    key_rows: Tensor
    cu_seqlens_q: Tensor
    cu_seqlens_kv: Tensor
    max_seqlen_q: int
    max_seqlen_kv: int


def gather_calls(calls: Sequence[Call]) -> Gathered:
    """The rows of all branches: a branch's keys are what it grows from, then its own. On the calls' device."""
    queries, keys = [], []
    for rows, prefix in calls:
        shared = [torch.arange(start, stop, device=rows.device) for start, stop in prefix]
        for branch in rows:
            own = branch[branch >= 0]
            queries.append(own)
            keys.append(torch.cat([*shared, own]))
    q, kv = ([len(rows) for rows in side] for side in (queries, keys))
    device = queries[0].device
    return Gathered(
        torch.cat(queries), torch.cat(keys), _cumulative(q, device), _cumulative(kv, device), max(q), max(kv)
    )


def _cumulative(lengths: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
