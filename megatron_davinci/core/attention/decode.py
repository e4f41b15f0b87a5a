"""Attention of responses that are being written: a new row of each sees its prefix, and what it has written so far.

B = responses, h = query heads, g = key-value heads, d = head dimension, T = rows that were kept, L = tokens that there
is room for. All responses together take one call of the kernel for each range of their prefixes, and one for what they
have written; log-sum-exp joins them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from megatron_davinci.core.attention.parts import Range, attend_segments, join_into
from megatron_davinci.core.attention.segments import Segments


class DecodeGroup(NamedTuple):
    """Responses `start` to `stop` grow from the same `prefix`, ranges of the rows that were kept."""

    start: int
    stop: int
    prefix: tuple[Range, ...]


@dataclass(frozen=True)
class DecodeRanges:
    """`count` responses. Each call of `calls`: neighbouring responses (as a range), and what they see of the prefix."""

    count: int
    calls: tuple[tuple[Range, Segments], ...]

    @classmethod
    def of(cls, groups: Sequence[DecodeGroup]) -> Self:
        """The first ranges of all groups make a call, then the second ones of those that have two, and so on."""
        calls = []
        groups = [group._replace(prefix=tuple(each for each in group.prefix if each[0] < each[1])) for group in groups]
        for number in range(max((len(group.prefix) for group in groups), default=0)):
            for run in _neighbours([group for group in groups if len(group.prefix) > number]):
                rows = (run[0].start, run[-1].stop)
                places = [group.prefix[number] for group in run]
                segments = Segments(
                    tuple(group.stop - group.start for group in run),
                    tuple(start for start, _ in places),
                    tuple(stop - start for start, stop in places),
                )
                calls.append((rows, segments))
        return cls(groups[-1].stop if groups else 0, tuple(calls))


def _neighbours(groups: Sequence[DecodeGroup]) -> list[list[DecodeGroup]]:
    runs: list[list[DecodeGroup]] = []
    for group in groups:
        if runs and runs[-1][-1].stop == group.start:
            runs[-1].append(group)
        else:
            runs.append([group])
    return runs


class KeyValueCache:
    """Keys and values of the layers on this rank: of the rows that all share, and of what each response has written.

    `longest`: tokens that a response may have; the last one's are never asked for.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        self._written: dict[int, tuple[Tensor, Tensor]] = {}
        self._lengths: dict[int, int] = {}
        self._segments: dict[tuple[int, int, int], Segments] = {}
        self._ranges: tuple[Sequence[DecodeGroup], DecodeRanges] = ((), DecodeRanges.of(()))

    def keep(self, layer: int, key: Tensor, value: Tensor) -> None:
        """The rows (T, g, d) that responses will see; copied, since Megatron's are views that hold the queries too."""
        whole = torch.contiguous_format
        self._kept[layer] = (key.clone(memory_format=whole), value.clone(memory_format=whole))

    def kept(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values (T, g, d) of the rows that were kept."""
        return self._kept[layer]

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Segments]:
        """A token more of each response (B, g, d); gives all that they have written, (B * L, g, d), and where."""
        at = self._lengths.get(layer, 0)
        if layer not in self._written or at == self._written[layer][0].size(1):
            self._written[layer] = self._with_room(layer, key)
        for kept, new in zip(self._written[layer], (key, value), strict=True):
            kept[:, at] = new
        self._lengths[layer] = at + 1
        keys, values = self._written[layer]
        return keys.flatten(0, 1), values.flatten(0, 1), self._own_segments(len(key), keys.size(1), at + 1)

    def ranges(self, groups: Sequence[DecodeGroup]) -> DecodeRanges:
        """What the groups see; made anew only where others have come, since its numbers go to the device."""
        if self._ranges[0] != groups:
            self._ranges = (groups, DecodeRanges.of(groups))
        return self._ranges[1]

    def select(self, rows: Tensor) -> None:
        """Go on with some of the responses."""
        for layer, (keys, values) in self._written.items():
            self._written[layer] = (keys[rows], values[rows])

    def _own_segments(self, responses: int, room: int, written: int) -> Segments:
        """Of each response its own query, and what it has written; the same for all layers of a step."""
        shape = (responses, room, written)
        if shape not in self._segments:
            starts = tuple(range(0, responses * room, room))
            self._segments = {shape: Segments((1,) * responses, starts, (written,) * responses)}
        return self._segments[shape]

    def _with_room(self, layer: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Twice as much as there was, but no more than is needed."""
        size, groups, width = like.shape
        there = self._written[layer][0].size(1) if layer in self._written else 0
        more = max(1, min(max(there, 16), self._longest - there))
        empty = like.new_empty(size, more, groups, width)
        if not there:
            return empty, torch.empty_like(empty)
        keys, values = (torch.cat([kept, empty], 1) for kept in self._written[layer])
        return keys, values


def attend_decode(
    query: Tensor, key: Tensor, value: Tensor, ranges: DecodeRanges, cache: KeyValueCache, layer: int, scale: float
) -> Tensor:
    """query (T, h, d), key and value (T, g, d), of which the first B rows are responses' -> (T, h, d).

    Sums are in fp32, as in training: in bf16 the rollouts' log-probabilities would stray.
    """
    out = torch.zeros_like(query)
    if not ranges.count:
        return out
    rows = slice(0, ranges.count)
    asked = query[rows]
    own_keys, own_values, segments = cache.append(layer, key[rows], value[rows])
    merged, total = attend_segments(asked, own_keys, own_values, segments, False, scale)
    merged = merged.float()
    for (start, stop), seen in ranges.calls:
        found, log_sum = attend_segments(asked[start:stop], *cache.kept(layer), seen, False, scale)
        join_into(merged[start:stop], total[:, start:stop], found, log_sum)
    out[rows] = merged.to(query.dtype)
    return out
