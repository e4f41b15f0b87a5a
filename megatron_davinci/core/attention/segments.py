"""Which keys a run of queries sees, as variable-length kernels are told: on the host, and once on the device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple, Self

import torch
from torch import Tensor


class DeviceSegments(NamedTuple):
    """Segments as flash attention takes them, (S + 1,) int32; `used_keys` (S,), where keys do not follow each other."""

    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    used_keys: Tensor | None


class EqualSegments(NamedTuple):
    """`size` segments of `queries` rows from row `query_start` on; number i sees `keys` rows from `key_start` + i *
    `key_stride` on."""

    query_start: int
    queries: int
    key_start: int
    keys: int
    key_stride: int
    size: int


@dataclass(frozen=True, eq=False)
class Segments:
    """S segments of queries, one after the other, and the range of key rows that each sees. No range is empty."""

    query_lengths: tuple[int, ...]
    key_starts: tuple[int, ...]
    key_lengths: tuple[int, ...]
    _folded: dict[int, "Segments"] = field(default_factory=dict)
    _on_device: dict[torch.device, DeviceSegments] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert all(self.query_lengths) and all(self.key_lengths), "no range is empty: kernels divide by their lengths"

    @classmethod
    def own(cls, lengths: Sequence[int]) -> Self:
        """Each segment sees the keys of its own rows."""
        return cls(tuple(lengths), tuple(_starts(lengths)), tuple(lengths))

    @classmethod
    def one(cls, queries: int, keys: int) -> Self:
        """A segment that sees the first `keys` keys."""
        return cls((queries,), (0,), (keys,))

    @cached_property
    def max_queries(self) -> int:
        """Queries of the longest segment."""
        return max(self.query_lengths)

    @cached_property
    def max_keys(self) -> int:
        """Keys of the longest range."""
        return max(self.key_lengths)

    @cached_property
    def keys_follow(self) -> bool:
        """True where the ranges of keys follow each other from row 0 on: what backward passes of kernels need."""
        return list(self.key_starts) == _starts(self.key_lengths)

    def folded(self, times: int) -> "Segments":
        """Segments in which each query has become `times` queries, one after the other."""
        if times not in self._folded:
            lengths = tuple(length * times for length in self.query_lengths)
            self._folded[times] = Segments(lengths, self.key_starts, self.key_lengths)
        return self._folded[times]

    def on(self, device: torch.device) -> DeviceSegments:
        """For a kernel; copied once for all layers."""
        if device not in self._on_device:
            ends = [*self.key_starts, self.key_starts[-1] + self.key_lengths[-1]]
            used = None if self.keys_follow else _numbers(self.key_lengths, device)
            queries = _numbers([0, *accumulate(self.query_lengths)], device)
            self._on_device[device] = DeviceSegments(queries, _numbers(ends, device), used)
        return self._on_device[device]

    @cached_property
    def equal_runs(self) -> list[EqualSegments]:
        """All segments, those of equal shape and distance together: one batched call each."""
        found: list[EqualSegments] = []
        for each in self._alone():
            joined = _join(found[-1], each) if found else None
            if joined is None:
                found.append(each)
            else:
                found[-1] = joined
        return found

    def _alone(self) -> Iterator[EqualSegments]:
        at = _starts(self.query_lengths)
        for start, queries, first, keys in zip(at, self.query_lengths, self.key_starts, self.key_lengths, strict=True):
            yield EqualSegments(start, queries, first, keys, 0, 1)


def _join(run: EqualSegments, other: EqualSegments) -> EqualSegments | None:
    """A run and the segment after it as one run, where that has the run's shape and distance."""
    stride = other.key_start - run.key_start if run.size == 1 else run.key_stride
    fits = (run.queries, run.keys) == (other.queries, other.keys)
    if not fits or stride < 0 or other.key_start != run.key_start + run.size * stride:
        return None
    return run._replace(key_stride=stride, size=run.size + 1)


def _starts(lengths: Sequence[int]) -> list[int]:
    return [0, *accumulate(lengths)][:-1]


def _numbers(values: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.int32).to(device, non_blocking=True)
