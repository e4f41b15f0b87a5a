"""From logits to a token. N = rows, V = vocabulary."""

import torch
from torch import Tensor

from megatron_davinci.rl.engines.base import Sampling

_ROWS = 64  # at once: in double precision, and several times over, a large vocabulary takes room


def draw_tokens(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """logits (N, V) float32 and numbers (N,) in [0, 1) -> tokens (N,) and their log-probabilities (N,) in float64.

    By inversion of the distribution function, in double precision: a single row's rounding depends on nothing else.
    """
    parts = zip(logits.split(_ROWS), uniforms.split(_ROWS), strict=True)
    tokens, log_probs = zip(*(_draw(some, numbers, sampling) for some, numbers in parts), strict=True)
    return torch.cat(tokens), torch.cat(log_probs)


def _draw(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    log_probs = (logits.double() / (sampling.temperature or 1.0)).log_softmax(1)
    if sampling.temperature == 0:
        tokens = log_probs.argmax(1)
    elif sampling.top_p < 1:
        probs, order = log_probs.exp().sort(dim=1, descending=True, stable=True)
        reached = probs.cumsum(1)
        nucleus = probs.where(reached - probs < sampling.top_p, 0.0)  # the first token that reaches it is in
        tokens = order.gather(1, _invert(nucleus, uniforms)[:, None])[:, 0]
    else:
        tokens = _invert(log_probs.exp(), uniforms)
    return tokens, log_probs.gather(1, tokens[:, None])[:, 0].clamp(max=0.0)


def _invert(probs: Tensor, uniforms: Tensor) -> Tensor:
    """The first token up to which the probabilities exceed that part of their sum; never one of probability 0."""
    reached = probs.cumsum(1)
    wanted = uniforms.to(reached)[:, None] * reached[:, -1:]
    return torch.searchsorted(reached, wanted, right=True)[:, 0].clamp(max=probs.size(1) - 1)
