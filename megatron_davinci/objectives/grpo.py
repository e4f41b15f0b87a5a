"""The GRPO family over (row, label, weight) triples: advantages (Eq. 6) and the terms of the policy loss (Eq. 7).

G = responses of one group (one position of one document), R = responses of the batch, N = their tokens.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Policy = Literal["reinforce", "grpo", "dapo"]


def group_advantages(rewards: Sequence[float], delta: float = 1e-6, ddof: int = 1) -> list[float]:
    """Eq. 6: A_i = (r_i - mean) / (std + delta) within a group; all 0 where the rewards do not differ."""
    if len(set(rewards)) < 2:
        return [0.0] * len(rewards)
    values = torch.tensor(rewards, dtype=torch.float64)
    return ((values - values.mean()) / (values.std(correction=ddof) + delta)).tolist()


def policy_terms(
    policy: Policy,
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Tensor:
    """What is maximised for each response token (N,), before weights. All arguments (N,), log-probabilities in nats.

    reinforce: A log pi, exactly on-policy, as Eq. 7 has it. grpo, dapo: min(rho A, clip(rho, 1 - low, 1 + high) A) with
    rho = pi / pi_old (Shao et al. 2024, arXiv:2402.03300, Eq. 3); DAPO sets `clip_high` above `clip_low` (Yu et al.
    2025, arXiv:2503.14476, Eq. 8).
    """
    if policy == "reinforce":
        return advantages * log_probs
    ratio = _ratio(log_probs, old_log_probs)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return torch.minimum(ratio * advantages, clipped * advantages)


def is_clipped(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """Which tokens (N,) the clip of grpo and dapo takes the gradient of."""
    ratio = _ratio(log_probs, old_log_probs)
    return ratio.clamp(1 - clip_low, 1 + clip_high) * advantages < ratio * advantages


def _ratio(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    """pi / pi_old; between e^-20 and e^20, beyond which its gradient would overflow."""
    return (log_probs - old_log_probs).clamp(-20.0, 20.0).exp()


def kl_terms(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """k3, an estimate of KL(pi || pi_ref) for each token (N,) that is never negative: e^x - x - 1, x = log pi_ref/pi.

    Schulman 2020, "Approximating KL divergence"; GRPO's Eq. 4.
    """
    log_ratio = (reference_log_probs - log_probs).clamp(-20.0, 20.0)
    return log_ratio.exp() - log_ratio - 1
