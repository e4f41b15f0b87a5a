"""Attention over keys that lie in several places, without putting them together: softmax by parts.

N = queries, h = query heads, g = key-value heads, d = head dimension, b = groups of a part, m = keys of a group.

Each part is one call of torch's fused attention, which gives its output and the log-sum-exp of its scores; the outputs
are averaged by those. In backward each part's own kernel gets the merged output and log-sum-exp, and its gradients are
then those of the whole (ring attention does the same: Liu et al. 2023, arXiv:2310.01889).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Part(NamedTuple):
    """Keys and values (b, m, g, d) that N queries see, in b groups of N / b in their order.

    Where `causal`, query i of a group sees keys up to i; else all of them.
    """

    key: Tensor
    value: Tensor
    causal: bool


def merged_attention(query: Tensor, parts: Sequence[Part], scale: float) -> Tensor:
    """query (N, h, d) -> (N, h, d): one softmax over the keys of all parts. CPU only; h must be a multiple of g."""
    tensors = [tensor for part in parts for tensor in (part.key, part.value)]
    out: Tensor = _MergedAttention.apply(scale, [part.causal for part in parts], query, *tensors)
    return out


class _MergedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scale: float, causal: list[bool], query: Tensor, *tensors: Tensor) -> Tensor:
        outputs, sums = [], []
        for key, value, is_causal in zip(tensors[::2], tensors[1::2], causal, strict=True):
            heads_first = [x.transpose(1, 2) for x in (_grouped(query, len(key)), key, value)]
            out, log_sum = _forward(*heads_first, is_causal=is_causal, scale=scale)
            outputs.append(_flat(out.transpose(1, 2)))  # (N, h, d)
            sums.append(_flat(log_sum.transpose(1, 2)))  # (N, h)
        total = torch.stack(sums).logsumexp(0)
        shares = (torch.stack(sums) - total).exp()[..., None]
        merged = outputs[0].float().mul_(shares[0])
        for out, share in zip(outputs[1:], shares[1:], strict=True):
            merged.addcmul_(out, share)
        merged = merged.to(query.dtype)
        ctx.save_for_backward(query, merged, total, *tensors)
        ctx.scale, ctx.causal = scale, causal
        return merged

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        query, merged, total, *tensors = ctx.saved_tensors
        grad_query, grads = None, []
        for key, value, is_causal in zip(tensors[::2], tensors[1::2], ctx.causal, strict=True):
            groups = len(key)
            grad_out, q, out = (_grouped(x, groups).transpose(1, 2) for x in (grad, query, merged))
            log_sum = _grouped(total, groups).transpose(1, 2).contiguous()
            k, v = key.transpose(1, 2), value.transpose(1, 2)
            gq, gk, gv = _backward(grad_out, q, k, v, out, log_sum, 0.0, is_causal, scale=ctx.scale)
            flat = _flat(gq.transpose(1, 2))
            grad_query = flat if grad_query is None else grad_query.add_(flat)
            grads += [gk.transpose(1, 2), gv.transpose(1, 2)]
        return None, None, grad_query, *grads


def _grouped(rows: Tensor, groups: int) -> Tensor:
    """(N, ...) -> (groups, N / groups, ...)."""
    return rows.unflatten(0, (groups, -1))


def _flat(rows: Tensor) -> Tensor:
    return rows.flatten(0, 1)
