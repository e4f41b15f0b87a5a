"""Attention of responses that are being written: a new row of each sees its prefix, and what it has written so far.

B = responses, h = query heads, g = key-value heads, d = head dimension, P = rows of a prefix, t = tokens written.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_davinci.core.attention.tree import PositionedSegments


class DecodeGroup(NamedTuple):
    """Responses `start` to `stop` grow from the same `prefix`, ranges of the rows that were kept."""

    start: int
    stop: int
    prefix: tuple[tuple[int, int], ...]


class KeyValueCache:
    """Keys and values of the layers on this rank: of the rows that all share, and of what each response has written.

    `longest`: tokens that a response may have; the last one's are never asked for.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        self._written: dict[int, tuple[Tensor, Tensor]] = {}
        self._lengths: dict[int, int] = {}

    def keep(self, layer: int, key: Tensor, value: Tensor) -> None:
        """The rows (T, g, d) that responses will see; copied, since Megatron's are views that hold the queries too."""
        self._kept[layer] = (key.transpose(0, 1).clone(), value.transpose(0, 1).clone())

    def kept(self, layer: int, rows: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Keys and values (g, P, d) of a range of the rows that were kept."""
        key, value = self._kept[layer]
        return key[:, rows[0] : rows[1]], value[:, rows[0] : rows[1]]

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """A token more of each response (B, g, d); gives all that they have written, (B, g, t, d)."""
        at = self._lengths.get(layer, 0)
        if layer not in self._written or at == self._written[layer][0].size(2):
            self._written[layer] = self._with_room(layer, key)
        for kept, new in zip(self._written[layer], (key, value), strict=True):
            kept[:, :, at] = new
        self._lengths[layer] = at + 1
        keys, values = self._written[layer]
        return keys[:, :, : at + 1], values[:, :, : at + 1]

    def select(self, rows: Tensor) -> None:
        """Go on with some of the responses."""
        for layer, (keys, values) in self._written.items():
            self._written[layer] = (keys[rows], values[rows])

    def _with_room(self, layer: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Twice as much as there was, but no more than is needed."""
        size, groups, width = like.shape
        there = self._written[layer][0].size(2) if layer in self._written else 0
        more = max(1, min(max(there, 16), self._longest - there))
        empty = like.new_empty(size, groups, more, width)
        if not there:
            return empty, torch.empty_like(empty)
        keys, values = (torch.cat([kept, empty], 2) for kept in self._written[layer])
        return keys, values


@dataclass
class DecodeSegments(PositionedSegments):
    """Rides as `packed_seq_params`. Rows beyond those of `decode_groups` are padding."""

    decode_groups: Sequence[DecodeGroup] = ()
    cache: KeyValueCache = field(default_factory=lambda: KeyValueCache(0))


def attend_decode(
    query: Tensor, key: Tensor, value: Tensor, segments: DecodeSegments, layer: int, scale: float
) -> Tensor:
    """query (T, h, d), key and value (T, g, d), of which the first B rows are responses' -> (T, h * d).

    Scores and sums are in fp32, as in the kernels of training: in bf16 the rollouts' log-probabilities would stray.
    """
    if not segments.decode_groups:
        return query.new_zeros(query.size(0), query.size(1) * query.size(2))
    count, groups = segments.decode_groups[-1].stop, key.size(1)
    asked = query[:count].unflatten(1, (groups, -1)).float() * scale  # (B, g, h/g, d)
    own_keys, own_values = segments.cache.append(layer, key[:count], value[:count])
    own_scores = asked @ own_keys.float().transpose(2, 3)  # (B, g, h/g, t)
    out = query.new_zeros(query.size(0), query.size(1) * query.size(2))
    for start, stop, prefix in segments.decode_groups:
        rows = slice(start, stop)
        shared = [[rows.float() for rows in segments.cache.kept(layer, place)] for place in prefix]
        flat = asked[rows].transpose(0, 1).flatten(1, 2)  # (g, b * h/g, d)
        scores = [(flat @ keys.transpose(1, 2)).unflatten(1, (stop - start, -1)).transpose(0, 1) for keys, _ in shared]
        shares = torch.cat([*scores, own_scores[rows]], 3).softmax(3)
        *of_shared, of_own = shares.split([*(keys.size(1) for keys, _ in shared), own_keys.size(2)], 3)
        found = of_own @ own_values[rows].float()
        for share, (_, values) in zip(of_shared, shared, strict=True):
            found += (share.transpose(0, 1).flatten(1, 2) @ values).unflatten(1, (stop - start, -1)).transpose(0, 1)
        out[rows] = found.flatten(1).to(query.dtype)
    return out
