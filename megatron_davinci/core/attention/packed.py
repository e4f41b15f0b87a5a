"""Causal attention over packed documents: none sees another one.

T = rows of the micro-batch on this rank, h = query heads, g = key-value heads, d = head dimension. Under context
parallelism every segment is cut into 2 * CP equal chunks, of which rank r holds number r and number 2 * CP - 1 - r: so
Megatron and Transformer Engine shard them, because causal attention then costs every rank the same.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from megatron_davinci.core.attention.decode import DecodeSegments, attend_decode
from megatron_davinci.core.attention.merged import Part, merged_attention
from megatron_davinci.core.attention.tree import PositionedSegments, TreeSegments, attend_tree
from megatron_davinci.data.packed import rows_of_context_rank


@dataclass
class PackedSegments(PackedSeqParams):
    """Megatron's parameters of packed rows, and the boundaries (segments + 1) on the host.

    A segment's padding belongs to it: it comes after all tokens, which causal attention keeps from seeing it.
    """

    boundaries: Sequence[int] = ()

    @classmethod
    def of(cls, boundaries: Sequence[int], device: torch.device) -> "PackedSegments":
        """Parameters for TE's attention, Megatron's rotary embedding, and PackedAttention."""
        cu_seqlens = torch.tensor(boundaries, dtype=torch.int32, device=device)
        longest = max(b - a for a, b in pairwise(boundaries))
        return cls(
            qkv_format="thd",
            cu_seqlens_q=cu_seqlens,
            cu_seqlens_kv=cu_seqlens,
            cu_seqlens_q_padded=cu_seqlens,
            cu_seqlens_kv_padded=cu_seqlens,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
            boundaries=boundaries,
        )


class PackedAttention(MegatronModule):
    """A `core_attention` for Megatron's SelfAttention: packed rows (qkv_format "thd"), or the rows of trees.

    Megatron's own local attention refuses packed rows. Here each segment of `cu_seqlens` is one call of torch's fused
    attention, so memory stays linear in the length of a document. Under context parallelism keys and values are
    gathered from all ranks.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        softmax_scale: float | None = None,
        **_unused: Any,
    ) -> None:
        super().__init__(config=config)
        assert attention_type == "self"
        self.softmax_scale = softmax_scale or 1.0 / math.sqrt(config.kv_channels)
        self.layer_number = layer_number
        self.cp_group = parallel_state.get_context_parallel_group()

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: None,
        attn_mask_type: Any = None,
        attention_bias: None = None,
        packed_seq_params: PackedSegments | PositionedSegments | None = None,
    ) -> Tensor:
        """query (T, h, d), key and value (T, g, d) -> (T, h*d); PositionedSegments have an axis of 1 after T."""
        assert packed_seq_params is not None, "cu_seqlens must reach every pipeline stage"
        assert attention_mask is None and attention_bias is None
        if isinstance(packed_seq_params, PositionedSegments):
            assert self.cp_group.size() == 1, "a tree is not cut over context ranks"
            rows = (query[:, 0], key[:, 0], value[:, 0])
            return self._attend_positioned(*rows, packed_seq_params)[:, None]
        boundaries = packed_seq_params.boundaries
        context = self.cp_group.size()
        assert boundaries[-1] == query.size(0) * context, "every row, padding too, belongs to a segment"
        if context == 1:
            parts = [attend(query[a:b], key[a:b], value[a:b], self.softmax_scale) for a, b in pairwise(boundaries)]
        else:
            key, value = (self._gather(x, boundaries) for x in (key, value))
            parts = list(self._attend_chunks(query, key, value, boundaries))
        return torch.cat(parts).flatten(1)

    def _attend_positioned(self, query: Tensor, key: Tensor, value: Tensor, segments: PositionedSegments) -> Tensor:
        """The rows of trees, or of responses that are being written."""
        if isinstance(segments, DecodeSegments):
            return attend_decode(query, key, value, segments, self.layer_number, self.softmax_scale)
        assert isinstance(segments, TreeSegments)
        if segments.keep is not None:
            segments.keep(self.layer_number, key, value)
        return attend_tree(query, key, value, segments.blocks, self.softmax_scale)

    def _attend_chunks(self, query: Tensor, key: Tensor, value: Tensor, boundaries: Sequence[int]) -> Iterator[Tensor]:
        """Both chunks of each segment that this rank holds, against all that comes up to their ends."""
        context, rank = self.cp_group.size(), self.cp_group.rank()
        at = 0
        for start, end in pairwise(boundaries):
            chunk = (end - start) // (2 * context)
            for number in (rank, 2 * context - 1 - rank):
                own = start + number * chunk
                seen = [Part(key[None, own : own + chunk], value[None, own : own + chunk], causal=True)]
                if own > start:
                    seen.append(Part(key[None, start:own], value[None, start:own], causal=False))
                yield merged_attention(query[at : at + chunk], seen, self.softmax_scale)
                at += chunk

    def _gather(self, rows: Tensor, boundaries: Sequence[int]) -> Tensor:
        """Rows of all context-parallel ranks in order of the sequence; backward gives each rank the sum of its own."""
        context = self.cp_group.size()
        held = torch.cat([rows_of_context_rank(boundaries, rank, context) for rank in range(context)])
        gathered: Tensor = gather_from_sequence_parallel_region(rows.contiguous(), group=self.cp_group)
        return gathered[held.argsort().to(rows.device)]


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Causal attention inside one segment: query (n, h, d), key and value (n, g, d) -> (n, h, d)."""
    q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))  # (1, heads, n, d)
    out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=q.size(1) != k.size(1))
    return out[0].transpose(0, 1)
