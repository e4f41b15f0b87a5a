"""Attention over keys that lie in several places, without putting them together: softmax by parts.

T = query rows, M = key rows, h = query heads, g = key-value heads, d = head dimension.

Each part is one call of a kernel, which gives its output and the log-sum-exp of its scores; the outputs are averaged by
those, in float32. Backward adds up the gradients of all parts in float32, always in the same order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron_davinci.core.attention.kernels import Gradients, kernel_of
from megatron_davinci.core.attention.segments import Segments

Range = tuple[int, int]


@dataclass(frozen=True)
class Part:
    """Query rows `queries`, and the key rows `keys` that they see; `segments` counts from the start of both.

    A causal part is that of a row's own segment, and comes before other parts of the same rows. Where not `causal`,
    every query of a segment sees its whole range.
    """

    queries: Range
    keys: Range
    segments: Segments
    causal: bool

    @classmethod
    def own(cls, start: int, lengths: Sequence[int]) -> "Part":
        """Segments of rows from `start` on, each of which sees itself."""
        rows = (start, start + sum(lengths))
        return cls(rows, rows, Segments.own(lengths), causal=True)

    @classmethod
    def seen(cls, queries: Range, keys: Range) -> "Part":
        """Rows that all see the same earlier rows."""
        return cls(queries, keys, Segments.one(queries[1] - queries[0], keys[1] - keys[0]), causal=False)


def attend_parts(query: Tensor, key: Tensor, value: Tensor, parts: Sequence[Part], scale: float) -> Tensor:
    """query (T, h, d), key and value (M, g, d) -> (T, h, d): one softmax over the keys of all parts of a row.

    Rows in no part give 0. h must be a multiple of g.
    """
    out: Tensor = _AttendParts.apply(query, key, value, parts, scale)
    return out


class _AttendParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, parts: Sequence[Part], scale: float) -> Tensor:
        output, total = _forward(query, key, value, parts, scale)
        ctx.save_for_backward(query, key, value, output, total)
        ctx.parts, ctx.scale = parts, scale
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        query, key, value, output, total = ctx.saved_tensors
        return *_backward(grad, query, key, value, output, total, ctx.parts, ctx.scale), None, None


def _forward(query: Tensor, key: Tensor, value: Tensor, parts: Sequence[Part], scale: float) -> tuple[Tensor, Tensor]:
    """The output, and the log-sum-exp (h, T) over all parts."""
    if _is_one_call(parts, query, key):
        return _forward_part(query, key, value, parts[0], scale)
    merged = torch.zeros(query.shape, dtype=torch.float32, device=query.device)
    total = torch.full((query.size(1), query.size(0)), -torch.inf, device=query.device)
    for part in parts:
        rows = slice(*part.queries)
        output, log_sum = _forward_part(query, key, value, part, scale)
        if part.causal:  # the first of its rows
            merged[rows], total[:, rows] = output, log_sum
            continue
        join_into(merged[rows], total[:, rows], output, log_sum)
    return merged.to(query.dtype), total


def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    total: Tensor,
    parts: Sequence[Part],
    scale: float,
) -> Gradients:
    """Gradients of query, key and value."""
    if _is_one_call(parts, query, key):
        return _backward_part(grad, query, key, value, output, total, parts[0], scale)
    of_query, of_key, of_value = (torch.zeros(x.shape, device=x.device) for x in (query, key, value))
    for part in parts:
        rows, keys = slice(*part.queries), slice(*part.keys)
        found = _backward_part(grad, query, key, value, output, total, part, scale)
        for whole, more in zip((of_query[rows], of_key[keys], of_value[keys]), found, strict=True):
            whole += more
    return of_query.to(query.dtype), of_key.to(key.dtype), of_value.to(value.dtype)


def join_into(merged: Tensor, total: Tensor, output: Tensor, log_sum: Tensor) -> None:
    """Make of the outputs (N, h, d) over some keys, and their log-sum-exp (h, N), in place, those over more keys.

    The two shares are one's and its complement: taken from the joint log-sum-exp, which is rounded where it is large,
    they would not add up to 1.
    """
    share = (log_sum - total).sigmoid().t()[..., None]
    merged.lerp_(output.to(merged.dtype), share)
    torch.logaddexp(total, log_sum, out=total)


def _forward_part(query: Tensor, key: Tensor, value: Tensor, part: Part, scale: float) -> tuple[Tensor, Tensor]:
    rows, keys = slice(*part.queries), slice(*part.keys)
    return attend_segments(query[rows], key[keys], value[keys], part.segments, part.causal, scale)


def attend_segments(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Output (N, h, d) and log-sum-exp (h, N) of one call of this device's kernel; no gradient flows through it.

    Where all queries see the same keys, those of one group of heads become rows: keys are read once for the group.
    """
    kernel, group = kernel_of(query.device), query.size(1) // key.size(1)
    if causal or group == 1:
        return kernel.forward(query, key, value, segments, causal, scale)
    output, log_sum = kernel.forward(_fold(query, group), key, value, segments.folded(group), False, scale)
    return _unfold(output, group), log_sum.unflatten(1, (-1, group)).transpose(1, 2).flatten(0, 1)


def _backward_part(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    total: Tensor,
    part: Part,
    scale: float,
) -> Gradients:
    rows, keys = slice(*part.queries), slice(*part.keys)
    grad, query, output, total, key, value = (
        grad[rows],
        query[rows],
        output[rows],
        total[:, rows],
        key[keys],
        value[keys],
    )
    kernel = kernel_of(query.device)
    # Heads stay heads: what a GPU's repeatable backward pass sets aside grows with rows, and as heads become fewer.
    return kernel.backward(grad, query, key, value, output, total, part.segments, part.causal, scale)


def _is_one_call(parts: Sequence[Part], query: Tensor, key: Tensor) -> bool:
    """True where one part has all queries and all keys: nothing is to be joined."""
    return len(parts) == 1 and parts[0].queries == (0, len(query)) and parts[0].keys == (0, len(key))


def _fold(rows: Tensor, group: int) -> Tensor:
    """(N, h, d) -> (N * h/g, g, d): the heads of a group become rows, one after the other."""
    return rows.unflatten(1, (-1, group)).transpose(1, 2).flatten(0, 1)


def _unfold(rows: Tensor, group: int) -> Tensor:
    """The inverse of `_fold`."""
    return rows.unflatten(0, (-1, group)).transpose(1, 2).flatten(1, 2)
