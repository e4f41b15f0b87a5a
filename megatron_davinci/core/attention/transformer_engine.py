"""Trees in Transformer Engine's attention: one call over gathered keys. Imported only where there is a GPU."""

import math
from typing import Any

from megatron.core.extensions.transformer_engine import TEDotProductAttention
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformer_engine.pytorch import DotProductAttention

from megatron_davinci.core.attention.blocks import GatheredBlocks
from megatron_davinci.core.attention.decode import DecodeSegments, attend_decode
from megatron_davinci.core.attention.tree import TreeSegments


class TreeDotProductAttention(TEDotProductAttention):
    """Megatron's TEDotProductAttention that takes PositionedSegments too. Not yet run on a GPU."""

    def __init__(self, config: TransformerConfig, *rest: Any, softmax_scale: float | None = None, **named: Any) -> None:
        super().__init__(config, *rest, softmax_scale=softmax_scale, **named)
        self._scale = softmax_scale or 1.0 / math.sqrt(config.kv_channels)  # Transformer Engine's own is out of reach

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *rest: Any, packed_seq_params: Any = None, **named: Any
    ) -> Tensor:
        """query (T, 1, h, d), key and value (T, 1, g, d) -> (T, 1, h*d) for trees; else as upstream."""
        if isinstance(packed_seq_params, DecodeSegments):
            rows = (query[:, 0], key[:, 0], value[:, 0])
            return attend_decode(*rows, packed_seq_params, self.layer_number, self._scale)[:, None]
        if not isinstance(packed_seq_params, TreeSegments):
            out: Tensor = super().forward(query, key, value, *rest, packed_seq_params=packed_seq_params, **named)
            return out
        if packed_seq_params.keep is not None:
            packed_seq_params.keep(self.layer_number, key[:, 0], value[:, 0])
        if not packed_seq_params.blocks:
            return query.flatten(2) * 0.0  # zeros that depend on an input, for recomputation
        gathered = packed_seq_params.gathered(query.device)
        # The gathered keys hold every prefix once for each response: backward gathers them again.
        attended = checkpoint(
            self._attend_gathered, query[:, 0], key[:, 0], value[:, 0], gathered,
            use_reentrant=False, preserve_rng_state=False,
        )  # fmt: skip
        zeros = query.new_zeros(query.size(0), attended.size(1))
        return zeros.index_copy(0, gathered.query_rows, attended)[:, None]

    def _attend_gathered(self, query: Tensor, key: Tensor, value: Tensor, gathered: GatheredBlocks) -> Tensor:
        # Megatron's AttnMaskType has no name for this mask, and its forward would pass a top-left one.
        out: Tensor = DotProductAttention.forward(
            self,
            query.index_select(0, gathered.query_rows),
            key.index_select(0, gathered.key_rows),
            value.index_select(0, gathered.key_rows),
            attention_mask=None,
            qkv_format="thd",
            cu_seqlens_q=gathered.cu_seqlens_q,
            cu_seqlens_kv=gathered.cu_seqlens_kv,
            max_seqlen_q=gathered.max_seqlen_q,
            max_seqlen_kv=gathered.max_seqlen_kv,
            attn_mask_type="padding_causal_bottom_right",
        )
        return out.flatten(1)
