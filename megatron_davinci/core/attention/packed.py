"""Causal attention over packed documents: none sees another one.

T = rows of the micro-batch on this rank, h = query heads, g = key-value heads, d = head dimension. Under context
parallelism every segment is cut into 2 * CP equal chunks, of which rank r holds number r and number 2 * CP - 1 - r: so
Megatron and Transformer Engine shard them, because causal attention then costs every rank the same.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_davinci.core.attention.parts import Part, attend_parts
from megatron_davinci.core.attention.positioned import PositionedSegments
from megatron_davinci.core.attention.segments import Segments
from megatron_davinci.data.packed import rows_of_context_rank


@dataclass
class PackedSegments(PackedSeqParams):
    """Megatron's parameters of packed rows, and the boundaries (segments + 1) on the host.

    A segment's padding belongs to it: it comes after all tokens, which causal attention keeps from seeing it.
    """

    boundaries: Sequence[int] = ()
    _parts: dict[tuple[int, int], list[Part]] = field(default_factory=dict)

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

    def parts(self, rank: int, context: int) -> list[Part]:
        """What the rows of a context rank see of all ranks' keys in the order of the sequence; made once."""
        if (rank, context) not in self._parts:
            whole = [Part.own(self.boundaries[0], [b - a for a, b in pairwise(self.boundaries)])]
            self._parts[rank, context] = whole if context == 1 else list(self._chunks(rank, context))
        return self._parts[rank, context]

    def _chunks(self, rank: int, context: int) -> Iterator[Part]:
        """Both chunks of each segment that a rank holds, against all that comes up to their ends."""
        at = 0
        for start, end in pairwise(self.boundaries):
            chunk = (end - start) // (2 * context)
            for number in (rank, 2 * context - 1 - rank):
                own, queries = start + number * chunk, (at, at + chunk)
                yield Part(queries, (own, own + chunk), Segments.own([chunk]), causal=True)
                if own > start:
                    yield Part.seen(queries, (start, own))
                at += chunk


class PackedAttention(MegatronModule):
    """A `core_attention` for Megatron's SelfAttention: packed rows (qkv_format "thd"), or rows at own positions.

    Megatron's own local attention refuses packed rows. Memory stays linear in the length of a document. Under context
    parallelism keys and values are gathered from all ranks.
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
        context = self.cp_group.size()
        if isinstance(packed_seq_params, PositionedSegments):
            assert context == 1, "a tree is not cut over context ranks"
            rows = (query[:, 0], key[:, 0], value[:, 0])
            return packed_seq_params.attend(*rows, self.layer_number, self.softmax_scale).flatten(1)[:, None]
        boundaries = packed_seq_params.boundaries
        assert boundaries[-1] == query.size(0) * context, "every row, padding too, belongs to a segment"
        if context > 1:
            key, value = (self._gather(x, boundaries) for x in (key, value))
        parts = packed_seq_params.parts(self.cp_group.rank(), context)
        return attend_parts(query, key, value, parts, self.softmax_scale).flatten(1)

    def _gather(self, rows: Tensor, boundaries: Sequence[int]) -> Tensor:
        """Rows of all context-parallel ranks in order of the sequence; backward gives each rank the sum of its own."""
        context = self.cp_group.size()
        held = torch.cat([rows_of_context_rank(boundaries, rank, context) for rank in range(context)])
        gathered: Tensor = gather_from_sequence_parallel_region(rows.contiguous(), group=self.cp_group)
        return gathered[held.argsort().to(rows.device)]
