"""A tree's attention as blocks of rows, and all blocks of a tree as one call of a variable-length kernel.

b = branches of a block, n = rows of the longest; B = branches of all blocks.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class AttentionBlock(NamedTuple):
    """Branches that grow from the same place: each row sees every row of `prefix`, and its own branch up to itself.

    `rows` (b, n): row numbers of each branch, -1 after the end of a shorter one. `prefix`: ranges of rows.
    """

    rows: Tensor
    prefix: tuple[tuple[int, int], ...]


class GatheredBlocks(NamedTuple):
    """Which rows are queries and which are keys, branch after branch; cu_seqlens (B + 1,) int32 cut them up.

    The mask is causal and aligned at the bottom right: the last query of a branch sees its last key.
    """

    query_rows: Tensor
    key_rows: Tensor
    cu_seqlens_q: Tensor
    cu_seqlens_kv: Tensor
    max_seqlen_q: int
    max_seqlen_kv: int


def gather_blocks(blocks: Sequence[AttentionBlock], device: torch.device) -> GatheredBlocks:
    """The rows of all branches, put together on the host: a branch's keys are what it grows from, then its own."""
    queries, keys = [], []
    for rows, prefix in blocks:
        shared = [torch.arange(start, stop) for start, stop in prefix]
        for branch in rows:
            own = branch[branch >= 0]
            queries.append(own)
            keys.append(torch.cat([*shared, own]))
    q, kv = ([len(rows) for rows in side] for side in (queries, keys))
    return GatheredBlocks(
        torch.cat(queries).to(device),
        torch.cat(keys).to(device),
        _cumulative(q).to(device),
        _cumulative(kv).to(device),
        max(q),
        max(kv),
    )


def _cumulative(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
