"""The GRPO family over (row, label, weight) triples: advantages (Eq. 6) and the terms of the policy loss (Eq. 7).

G = responses of one group (one position of one document), R = responses of the batch, N = their tokens. A policy loss
of your own is a `PolicyLoss`, which a recipe names as objective.policy.kind: package.module:name.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor


class PolicyTokens(NamedTuple):
    """The response tokens of one micro-batch, all (N,): log-probabilities in nats, advantages, and `responses`, which
    numbers the response that each token belongs to."""

    log_probs: Tensor
    old_log_probs: Tensor
    advantages: Tensor
    responses: Tensor


Aggregation = Literal["response_sum", "response_mean", "batch_mean"]
"""Inside a response the sum, or the mean, and the mean over responses; or the mean over all tokens of the batch."""


@dataclass(frozen=True)
class PolicyLoss:
    """One algorithm of the family. The clips are objective.policy.clip_low and clip_high."""

    terms: Callable[[PolicyTokens, float, float], Tensor]
    """(tokens, clip_low, clip_high) -> (N,): what is maximized for each token, before weights."""
    aggregation: Aggregation
    clipped: Callable[[PolicyTokens, float, float], Tensor] | None = None
    """(tokens, clip_low, clip_high) -> (N,) bool: the tokens whose gradient the clip takes; None where none is."""
    clip_low: float = 0.2
    """What clip_low is where the recipe does not say."""
    clip_high: float = 0.2
    """What clip_high is where the recipe does not say."""
    divides_by_deviation: bool = True
    """Whether advantages are divided by the deviation of the group's rewards, as Eq. 6 has it."""
    on_policy: bool = False
    """Only rollouts of the very same policy may be trained on."""


def group_advantages(rewards: Sequence[float], delta: float = 1e-6, ddof: int = 1, divide: bool = True) -> list[float]:
    """Eq. 6: A_i = (r_i - mean) / (std + delta) within a group; all 0 where the rewards do not differ.

    Not `divide`: A_i = r_i - mean (Dr. GRPO: Liu et al. 2025, arXiv:2503.20783, Section 3.2).
    """
    if len(set(rewards)) < 2:
        return [0.0] * len(rewards)
    values = torch.tensor(rewards, dtype=torch.float64)
    centred = values - values.mean()
    return (centred / (values.std(correction=ddof) + delta) if divide else centred).tolist()


def reinforce_terms(tokens: PolicyTokens, clip_low: float, clip_high: float) -> Tensor:
    """A log pi, as Eq. 7 has it: exactly on-policy, without a ratio."""
    return tokens.advantages * tokens.log_probs


def clipped_ratio_terms(tokens: PolicyTokens, clip_low: float, clip_high: float) -> Tensor:
    """min(rho A, clip(rho, 1 - low, 1 + high) A) with rho = pi / pi_old (Shao et al. 2024, arXiv:2402.03300, Eq. 3)."""
    ratio = policy_ratio(tokens)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return torch.minimum(ratio * tokens.advantages, clipped * tokens.advantages)


def ratio_is_clipped(tokens: PolicyTokens, clip_low: float, clip_high: float) -> Tensor:
    """The tokens (N,) whose gradient `clipped_ratio_terms` takes."""
    ratio = policy_ratio(tokens)
    return ratio.clamp(1 - clip_low, 1 + clip_high) * tokens.advantages < ratio * tokens.advantages


def policy_ratio(tokens: PolicyTokens) -> Tensor:
    """pi / pi_old (N,), between e^-20 and e^20, beyond which its gradient would overflow."""
    return (tokens.log_probs - tokens.old_log_probs).clamp(-20.0, 20.0).exp()


def clipped_sequence_terms(tokens: PolicyTokens, clip_low: float, clip_high: float) -> Tensor:
    """min(s A, clip(s, 1 - low, 1 + high) A), where s is the geometric mean of a response's ratios, for each of its
    tokens (Zheng et al. 2025, arXiv:2507.18071, Eq. 5 and 7)."""
    return clipped_ratio_terms(_as_sequences(tokens), clip_low, clip_high)


def sequence_is_clipped(tokens: PolicyTokens, clip_low: float, clip_high: float) -> Tensor:
    """The tokens (N,) whose gradient `clipped_sequence_terms` takes: all of a response, or none."""
    return ratio_is_clipped(_as_sequences(tokens), clip_low, clip_high)


def _as_sequences(tokens: PolicyTokens) -> PolicyTokens:
    """Tokens with the mean log-probabilities of their responses, whose tokens lie one behind the other."""
    lengths = torch.unique_consecutive(tokens.responses, return_counts=True)[1].tolist()

    def means(values: Tensor) -> Tensor:
        # in an order that is always the same, which sums by index are not on a GPU
        return torch.cat([values[:0], *(part.mean().expand(len(part)) for part in values.split(lengths))])

    return tokens._replace(log_probs=means(tokens.log_probs), old_log_probs=means(tokens.old_log_probs))


REINFORCE = PolicyLoss(reinforce_terms, "response_sum", on_policy=True)
GRPO = PolicyLoss(clipped_ratio_terms, "response_mean", ratio_is_clipped)
# Liu et al. 2025, arXiv:2503.20783, Section 3.2: neither a response's length nor its group's deviation divides.
DR_GRPO = PolicyLoss(clipped_ratio_terms, "response_sum", ratio_is_clipped, divides_by_deviation=False)
# Zheng et al. 2025, arXiv:2507.18071; the clips are those of its Section 5.1.
GSPO = PolicyLoss(clipped_sequence_terms, "response_mean", sequence_is_clipped, clip_low=3e-4, clip_high=4e-4)
# Yu et al. 2025, arXiv:2503.14476, Eq. 8: the upper clip is higher, and every token of the batch weighs the same.
DAPO = PolicyLoss(clipped_ratio_terms, "batch_mean", ratio_is_clipped, clip_high=0.28)


def kl_k3(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """k3, an estimate of KL(pi || pi_ref) for each token (N,) that is never negative: e^x - x - 1, x = log pi_ref/pi.

    Schulman 2020, "Approximating KL divergence"; GRPO's Eq. 4.
    """
    log_ratio = (reference_log_probs - log_probs).clamp(-20.0, 20.0)
    return log_ratio.exp() - log_ratio - 1


def kl_k2(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """k2, for each token (N,): (log pi/pi_ref)^2 / 2, whose mean gradient over tokens drawn from pi is exactly that of
    KL(pi || pi_ref), as Eq. 7 has it. As a number it is an estimate with a bias; k3's gradient is KL(pi_ref || pi)'s.

    Schulman 2020, "Approximating KL divergence".
    """
    return (log_probs - reference_log_probs).clamp(-20.0, 20.0).square() / 2
