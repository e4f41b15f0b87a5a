"""Log-probability and entropy of chosen tokens, from hidden states to numbers, in memory that V does not rule.

N = triples (row, label, weight), h = hidden size, V = vocabulary shard of this rank, C = rows of one chunk.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Logits of one chunk; 128 MiB in fp32. A row of a 152,064-token vocabulary takes 0.6 MB: 220 rows a chunk.
CHUNK_ELEMENTS = 1 << 25
# On a GPU each chunk's part is added to the whole gradient of the weight, in its memory: so chunks are larger there.
_GPU_CHUNK_ELEMENTS, _LARGE_GPU_CHUNK_ELEMENTS, _LARGE_GPU = 1 << 26, 1 << 27, 40 << 30
# Logits that are kept for backward; 1 GiB. Those beyond are computed again, which costs a third more of this layer.
KEPT_ELEMENTS = 1 << 28


def score_tokens(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    vocab_start: int = 0,
    group: dist.ProcessGroup | None = None,
    temperatures: Tensor | None = None,
    chunk_elements: int | None = None,
    kept_elements: int = KEPT_ELEMENTS,
) -> tuple[Tensor, Tensor]:
    """log p(label) and entropy - sum_v p_v log p_v, both (N,) float32 in nats, of softmax(hidden @ weight.T / T).

    hidden (N, h); weight (V, h), rows vocab_start to vocab_start + V of the whole output layer; labels (N,) ids of the
    whole vocabulary; `group` holds the ranks with the other shards; `temperatures` (N,), 1 where absent, divide logits
    in float32: bf16 would make 0.8008 of 0.8. Both results are differentiable. The gradient with
    respect to `hidden` is this shard's part: whoever gave the hidden states sums it over the group.
    """
    rows = max(1, (chunk_elements or chunk_elements_on(weight.device)) // weight.size(0))
    kept = kept_elements // (rows * weight.size(0)) if torch.is_grad_enabled() else 0
    scales = None if temperatures is None else 1.0 / temperatures.float()
    scores: tuple[Tensor, Tensor] = _TokenScores.apply(hidden, weight, labels, vocab_start, group, scales, rows, kept)
    return scores


def chunk_elements_on(device: torch.device) -> int:
    """Logits of a chunk: by the kind of device alone, never by what is free, so that a resumed run adds up the same."""
    if device.type != "cuda":
        return CHUNK_ELEMENTS
    large = torch.cuda.get_device_properties(device).total_memory >= _LARGE_GPU
    return _LARGE_GPU_CHUNK_ELEMENTS if large else _GPU_CHUNK_ELEMENTS


class _TokenScores(torch.autograd.Function):
    """Logits exist for one chunk of rows at a time, but for those of the first `kept` chunks."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        vocab_start: int,
        group: Any,
        scales: Tensor | None,
        chunk: int,
        kept: int,
    ) -> tuple[Tensor, Tensor]:
        local_labels, here = _labels_here(labels, vocab_start, weight.size(0))
        parts, ctx.logits = [], []
        scratch = hidden.new_empty(min(chunk, len(hidden)), weight.size(0), dtype=torch.float32)
        for at in range(0, len(hidden), chunk):
            logits = _logits(hidden, weight, scales, slice(at, at + chunk))
            parts.append(_local_statistics(logits, local_labels[at : at + chunk], scratch))
            if len(ctx.logits) < kept:
                ctx.logits.append(logits)
        statistics = torch.cat(parts, 1) if parts else hidden.new_zeros(4, 0, dtype=torch.float32)
        peak, total, weighted, target = statistics
        local_peak = peak
        target = target * here
        if group is not None and group.size() > 1:
            peak, total, weighted, target = _combine(peak, total, weighted, target, group)
        log_total = total.log()
        entropy = log_total - weighted / total
        ctx.save_for_backward(hidden, weight, local_labels, here, peak + log_total, local_peak, entropy, scales)
        ctx.set_materialize_grads(False)
        ctx.chunk = chunk
        return target - peak - log_total, entropy

    @staticmethod
    def backward(ctx: Any, grad_log_prob: Tensor | None, grad_entropy: Tensor | None) -> Any:
        hidden, weight, local_labels, here, log_sum_exp, local_peak, entropy, scales = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = None  # in fp32, since chunks add up
        for number, at in enumerate(range(0, len(hidden), ctx.chunk)):
            rows = slice(at, at + ctx.chunk)
            if number < len(ctx.logits):
                logits, ctx.logits[number] = ctx.logits[number], None
                log_probs = logits.sub_((log_sum_exp - local_peak)[rows, None])
            else:
                log_probs = _logits(hidden, weight, scales, rows).sub_(log_sum_exp[rows, None])
            grad = _grad_of_logits(log_probs, rows, grad_log_prob, grad_entropy, entropy)
            if grad_log_prob is not None:
                given = (grad_log_prob[rows] * here[rows])[:, None]
                grad.scatter_add_(1, local_labels[rows, None], given)
            if scales is not None:
                grad *= scales[rows, None]
            grad = grad.to(hidden.dtype)
            grad_hidden[rows] = grad @ weight
            if grad_weight is None:
                grad_weight = (grad.t() @ hidden[rows]).float()
            elif grad.dtype == torch.float32:
                grad_weight.addmm_(grad.t(), hidden[rows])
            else:
                grad_weight += grad.t() @ hidden[rows]
        grad_weight = torch.zeros_like(weight) if grad_weight is None else grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, *[None] * 6


def _logits(hidden: Tensor, weight: Tensor, scales: Tensor | None, rows: slice) -> Tensor:
    """(C, V) float32 of one chunk, divided by the temperatures."""
    logits = (hidden[rows] @ weight.t()).float()
    return logits if scales is None else logits.mul_(scales[rows, None])


def _labels_here(labels: Tensor, vocab_start: int, size: int) -> tuple[Tensor, Tensor]:
    """Labels as columns of this shard, column 0 where they belong to another one, and 1.0 where they are ours."""
    local = labels - vocab_start
    here = (local >= 0) & (local < size)
    return local.clamp(0, size - 1), here.float()


def _local_statistics(logits: Tensor, local_labels: Tensor, scratch: Tensor) -> Tensor:
    """(4, C) float32 of one chunk: peak m, sum e^(z-m), sum (z-m) e^(z-m), the label's own z. `logits` become z - m."""
    target = logits.gather(1, local_labels[:, None])[:, 0]
    peak = logits.amax(1)
    exponentials = torch.exp(logits.sub_(peak[:, None]), out=scratch[: len(logits)])
    total = exponentials.sum(1)
    return torch.stack([peak, total, exponentials.mul_(logits).sum(1), target])


def _combine(
    peak: Tensor, total: Tensor, weighted: Tensor, target: Tensor, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The statistics over all shards: first the common peak, then sums relative to it."""
    common = peak.clone()
    dist.all_reduce(common, dist.ReduceOp.MAX, group)
    gap = peak - common
    scale = gap.exp()
    sums = torch.stack([total * scale, (weighted + gap * total) * scale, target])
    dist.all_reduce(sums, group=group)
    return common, sums[0], sums[1], sums[2]


def _grad_of_logits(
    log_probs: Tensor, rows: slice, grad_log_prob: Tensor | None, grad_entropy: Tensor | None, entropy: Tensor
) -> Tensor:
    """d/dz of g . log p(label) without the label's own term, - g p, plus that of k . H, - k p (log p + H)."""
    if grad_entropy is None:
        probs = log_probs.exp_()
        return probs.mul_(-grad_log_prob[rows, None]) if grad_log_prob is not None else probs.zero_()
    factor = (log_probs + entropy[rows, None]).mul_(-grad_entropy[rows, None])
    if grad_log_prob is not None:
        factor -= grad_log_prob[rows, None]
    return factor.mul_(log_probs.exp_())
