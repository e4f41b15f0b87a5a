"""Attention in a tree of rows: branches share the keys and values of what they grow from.

T = rows of the micro-batch, h = query heads, g = key-value heads, d = head dimension, b = branches of a block, n = rows
of the longest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from megatron_davinci.core.attention.blocks import AttentionBlock, GatheredBlocks, gather_blocks
from megatron_davinci.core.attention.merged import Part, merged_attention


@dataclass
class PositionedSegments(PackedSeqParams):
    """Rides as `packed_seq_params`, which Megatron hands to every layer and keeps for every recomputation.

    `qkv_format` stays None: rows come as (T, 1, heads, d). position_ids (T,): RoPE positions.
    """

    position_ids: Tensor | None = None


@dataclass
class TreeSegments(PositionedSegments):
    """The attention blocks of trees. Rows in no block give 0.

    `keep`: called with each layer's number, keys and values (T, g, d), where somebody wants them.
    """

    blocks: Sequence[AttentionBlock] = ()
    keep: Callable[[int, Tensor, Tensor], None] | None = None
    _gathered: GatheredBlocks | None = None

    def gathered(self, device: torch.device) -> GatheredBlocks:
        """The blocks as one call of a variable-length kernel; put together once for all layers."""
        if self._gathered is None:
            self._gathered = gather_blocks(self.blocks, device)
        return self._gathered


def attend_tree(query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[AttentionBlock], scale: float) -> Tensor:
    """query (T, h, d), key and value (T, g, d) -> (T, h * d)."""
    outputs, places = [], []
    for rows, prefix in blocks:
        flat = rows.flatten()
        safe = flat.clamp_min(0)  # what stands for a missing row is computed and thrown away; no real row sees it
        own_key, own_value = (x.index_select(0, safe).unflatten(0, rows.shape) for x in (key, value))
        parts = [Part(own_key, own_value, causal=True)]
        if any(start < stop for start, stop in prefix):  # put together: small beside what grows from it
            seen_key, seen_value = (torch.cat([x[start:stop] for start, stop in prefix])[None] for x in (key, value))
            parts.append(Part(seen_key, seen_value, causal=False))
        out = merged_attention(query.index_select(0, safe), parts, scale)
        outputs.append(out.flatten(1))
        places.append(flat.where(flat >= 0, len(query)))
    if not outputs:
        return query.flatten(1) * 0.0  # zeros that depend on an input: recomputation looks for a gradient to compute
    # Zeros for rows in no block, and one row more, into which missing rows go.
    zeros = query.new_zeros(len(query) + 1, query.size(1) * query.size(2))
    return zeros.index_copy_(0, torch.cat(places), torch.cat(outputs))[:-1]


class PositionRotary(RotaryEmbedding):
    """RotaryEmbedding that turns each row by its own position where PositionedSegments give them.

    GPTModel passes what `get_rotary_seq_len` returns on to `forward`: here the positions themselves.
    """

    def get_rotary_seq_len(self, *args: Any, **kwargs: Any) -> Any:
        """The positions (T,) of PositionedSegments, else the length of the longest sequence, as upstream."""
        given = next((x for x in (*args, *kwargs.values()) if isinstance(x, PositionedSegments)), None)
        return super().get_rotary_seq_len(*args, **kwargs) if given is None else given.position_ids

    def forward(self, max_seq_len: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Angles (rows, 1, 1, d)."""
        if not torch.is_tensor(max_seq_len):
            angles: Tensor = super().forward(max_seq_len, *args, **kwargs)
            return angles
        half = torch.outer(max_seq_len.to(self.inv_freq.dtype), self.inv_freq.to(max_seq_len.device))
        return torch.cat((half, half), -1)[:, None, None]
