"""Causal attention over packed documents: none sees another one.

T = rows of the micro-batch on this rank, h = query heads, g = key-value heads, d = head dimension.
"""

import math
from itertools import pairwise
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class PackedAttention(MegatronModule):
    """A `core_attention` for Megatron's SelfAttention, for packed rows (qkv_format "thd"), on any device.

    Megatron's own local attention refuses packed rows. Here each segment of `cu_seqlens` is one call of torch's fused
    attention, so memory stays linear in the length of a document.
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

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: None,
        attn_mask_type: Any = None,
        attention_bias: None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """query (T, h, d), key and value (T, g, d) -> (T, h*d)."""
        assert packed_seq_params is not None, "cu_seqlens must reach every pipeline stage"
        assert attention_mask is None and attention_bias is None
        boundaries = packed_seq_params.cu_seqlens_q.tolist()
        assert boundaries[-1] == query.size(0), "every row, padding too, belongs to a segment"
        segments = [self._segment(*(x[a:b] for x in (query, key, value))) for a, b in pairwise(boundaries)]
        return torch.cat(segments).flatten(1)

    def _segment(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))  # (1, heads, length, d)
        out = scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=self.softmax_scale, enable_gqa=q.size(1) != k.size(1)
        )
        return out[0].transpose(0, 1)
