"""The attention kernels of torch behind one interface: the CPU's fused attention, and flash attention over cu_seqlens.

N = queries, M = keys, h = query heads, g = key-value heads, d = head dimension; h is a multiple of g.

`forward` gives the output (N, h, d) and the log-sum-exp of each query's scores (h, N), in float32. Where `causal`, a
segment has as many keys as queries, and query i sees keys up to number i. `backward` may get the output and log-sum-exp
of a softmax over more keys: its gradients are then those of the whole (ring attention does the same: Liu et al. 2023,
arXiv:2310.01889).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from megatron_davinci.core.attention.segments import EqualSegments, Segments

_flash_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_cpu_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_flash = torch.ops.aten._flash_attention_forward
_flash_backward = torch.ops.aten._flash_attention_backward

Gradients = tuple[Tensor, Tensor, Tensor]


class AttentionKernel(Protocol):
    """Attention of segments; `backward` takes those alone whose ranges of keys follow each other."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, segments: Segments, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp."""

    def backward(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        log_sum_exp: Tensor,
        segments: Segments,
        causal: bool,
        scale: float,
    ) -> Gradients:
        """Gradients of query, key and value."""


class CpuKernel:
    """torch's fused attention for the CPU: one batched call for neighbouring segments of equal shape."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, segments: Segments, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        """See `AttentionKernel`."""
        outputs, sums = [], []
        for run in segments.equal_runs:
            q, k, v = _queries(query, run), _keys(key, run), _keys(value, run)
            output, log_sum = _flash_cpu(q, k, v, is_causal=causal, scale=scale)
            outputs.append(output.transpose(1, 2).flatten(0, 1))
            sums.append(log_sum.transpose(0, 1).flatten(1))
        return _joined(outputs, 0), _joined(sums, 1)

    def backward(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        log_sum_exp: Tensor,
        segments: Segments,
        causal: bool,
        scale: float,
    ) -> Gradients:
        """See `AttentionKernel`."""
        assert segments.keys_follow
        found: list[list[Tensor]] = []
        for run in segments.equal_runs:
            grad_out, q, out = (_queries(x, run) for x in (grad, query, output))
            k, v = _keys(key, run), _keys(value, run)
            rows = slice(run.query_start, run.query_start + run.size * run.queries)
            log_sum = log_sum_exp[:, rows].unflatten(1, (run.size, -1)).transpose(0, 1).contiguous()
            grads = _flash_cpu_backward(grad_out, q, k, v, out, log_sum, 0.0, causal, scale=scale)
            found.append([x.transpose(1, 2).flatten(0, 1) for x in grads])
        of_query, of_key, of_value = (_joined(list(parts), 0) for parts in zip(*found, strict=True))
        return of_query, of_key, of_value


class CudaKernel:
    """torch's flash attention, always in its repeatable form. bf16 alone, from torch 2.7 on. Not yet run on a GPU."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, segments: Segments, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        """See `AttentionKernel`. Ranges of keys that do not follow each other are starts and lengths of a cache."""
        there = segments.on(query.device)
        output, log_sum, *_ = _flash(
            query, key, value, there.cu_seqlens_q, there.cu_seqlens_k, segments.max_queries, segments.max_keys,
            0.0, causal, False, scale=scale, seqused_k=there.used_keys,
        )  # fmt: skip
        assert log_sum.shape == (query.size(1), query.size(0)), "before torch 2.7 it had another shape"
        return output, log_sum

    def backward(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        log_sum_exp: Tensor,
        segments: Segments,
        causal: bool,
        scale: float,
    ) -> Gradients:
        """See `AttentionKernel`."""
        assert segments.keys_follow
        there, random_state = segments.on(query.device), torch.zeros(2, dtype=torch.uint64, device=query.device)
        with _repeatable():
            grads: Gradients = _flash_backward(
                grad.contiguous(), query, key, value, output, log_sum_exp.contiguous(), there.cu_seqlens_q,
                there.cu_seqlens_k, segments.max_queries, segments.max_keys, 0.0, causal, random_state,
                torch.empty(0, device=query.device), scale=scale,
            )  # fmt: skip
        return grads


def kernel_of(device: torch.device) -> AttentionKernel:
    """The kernel for tensors of a device."""
    return CudaKernel() if device.type == "cuda" else CpuKernel()


def _queries(rows: Tensor, run: EqualSegments) -> Tensor:
    """(count, heads, queries, d)."""
    stop = run.query_start + run.size * run.queries
    return rows[run.query_start : stop].unflatten(0, (run.size, run.queries)).transpose(1, 2)


def _keys(rows: Tensor, run: EqualSegments) -> Tensor:
    """(count, heads, keys, d): a view, also where the ranges lie over each other."""
    step = rows.stride(0)
    strides = (run.key_stride * step, *rows.stride())
    offset = rows.storage_offset() + run.key_start * step
    return rows.as_strided((run.size, run.keys, *rows.shape[1:]), strides, offset).transpose(1, 2)


def _joined(parts: list[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


@contextmanager
def _repeatable() -> Iterator[None]:
    """Have the kernel add up a query's gradient in one order: it looks at torch's global switch alone."""
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("error")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)
