"""Rows at own positions in Transformer Engine's layers. Imported only where these are built."""

import math
from typing import Any

from megatron.core.extensions.transformer_engine import TEDotProductAttention
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_davinci.core.attention.positioned import PositionedSegments


class PositionedDotProductAttention(TEDotProductAttention):
    """Megatron's TEDotProductAttention that takes PositionedSegments too, by torch's own kernel. Not yet run on a GPU.

    Transformer Engine's kernels give no log-sum-exp, by which the parts of a tree's attention are joined.
    """

    def __init__(self, config: TransformerConfig, *rest: Any, softmax_scale: float | None = None, **named: Any) -> None:
        super().__init__(config, *rest, softmax_scale=softmax_scale, **named)
        self._scale = softmax_scale or 1.0 / math.sqrt(config.kv_channels)  # Transformer Engine's own is out of reach

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *rest: Any, packed_seq_params: Any = None, **named: Any
    ) -> Tensor:
        """query (T, 1, h, d), key and value (T, 1, g, d) -> (T, 1, h*d) for PositionedSegments; else as upstream."""
        if not isinstance(packed_seq_params, PositionedSegments):
            out: Tensor = super().forward(query, key, value, *rest, packed_seq_params=packed_seq_params, **named)
            return out
        assert self.config.context_parallel_size == 1, "a tree is not cut over context ranks"
        rows = (query[:, 0], key[:, 0], value[:, 0])
        return packed_seq_params.attend(*rows, self.layer_number, self._scale).flatten(1)[:, None]
