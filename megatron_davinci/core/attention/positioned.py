"""Rows that stand at positions of their own: those of trees, and those of responses that are being written.

T = rows of the micro-batch, h = query heads, g = key-value heads, d = head dimension.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from megatron_davinci.core.attention.blocks import AttentionBlock, tree_parts
from megatron_davinci.core.attention.decode import DecodeGroup, KeyValueCache, attend_decode
from megatron_davinci.core.attention.parts import Part, attend_parts


@dataclass
class PositionedSegments(PackedSeqParams, ABC):
    """Rides as `packed_seq_params`, which Megatron hands to every layer and keeps for every recomputation.

    `qkv_format` stays None: rows come as (T, 1, heads, d). position_ids (T,): RoPE positions.
    """

    position_ids: Tensor | None = None

    @abstractmethod
    def attend(self, query: Tensor, key: Tensor, value: Tensor, layer: int, scale: float) -> Tensor:
        """query (T, h, d), key and value (T, g, d) -> (T, h, d)."""


@dataclass
class TreeSegments(PositionedSegments):
    """The attention blocks of trees. Rows in no block give 0.

    `keep`: called with each layer's number, keys and values (T, g, d), where somebody wants them.
    """

    blocks: Sequence[AttentionBlock] = ()
    keep: Callable[[int, Tensor, Tensor], None] | None = None

    @cached_property
    def _parts(self) -> list[Part]:
        return tree_parts(self.blocks)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layer: int, scale: float) -> Tensor:
        """See `PositionedSegments`: each branch sees what it grows from, which no branch holds a copy of."""
        if self.keep is not None:
            self.keep(layer, key, value)
        return attend_parts(query, key, value, self._parts, scale)


@dataclass
class DecodeSegments(PositionedSegments):
    """Responses that are being written: a new row of each. Rows beyond those of `decode_groups` are padding."""

    decode_groups: Sequence[DecodeGroup] = ()
    cache: KeyValueCache = field(default_factory=lambda: KeyValueCache(0))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layer: int, scale: float) -> Tensor:
        """See `PositionedSegments`; the rows' own keys and values go to the cache."""
        return attend_decode(query, key, value, self.cache.ranges(self.decode_groups), self.cache, layer, scale)


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
