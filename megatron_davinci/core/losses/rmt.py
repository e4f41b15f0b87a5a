"""RMT's loss over (row, label, weight) triples: masked next-token prediction and the policy objective in one sum.

All weights are fixed from counts of the whole global batch, so the gradient is the same however the batch is split.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from megatron_davinci.core.losses.policy import Aggregation

Normalization = Literal["paper", "per_component_tokens"]


@dataclass(frozen=True)
class RmtCounts:
    """Counts over one global batch: documents, selected positions, labels of the NTP loss, tokens of all responses."""

    documents: int
    positions: int
    ntp_labels: int
    response_tokens: int


def ntp_weight(normalization: Normalization, counts: RmtCounts, ntp_lambda: float) -> float:
    """lambda times what one label of the masked NTP loss weighs (Eq. 8, 9).

    paper: summed over a document, mean over documents. per_component_tokens: mean over all labels.
    """
    whole = counts.documents if normalization == "paper" else counts.ntp_labels
    return ntp_lambda / max(1, whole)


def response_token_weight(
    normalization: Normalization, aggregation: Aggregation, counts: RmtCounts, responses: int, tokens: int
) -> float:
    """What one token of a response of `tokens`, one of `responses` at its position, weighs in J_RL (Eq. 7).

    paper: the mean over positions and over the responses of each, with the policy loss's `aggregation` inside a
    response: the sum for reinforce (the logarithm of the response's probability) and dr_grpo, the mean for grpo and
    gspo, and for dapo the mean over all tokens of the batch instead of all that. per_component_tokens: that last one
    for every policy loss, tokens of groups without advantage included.
    """
    if normalization == "per_component_tokens" or aggregation == "batch_mean":
        return 1.0 / max(1, counts.response_tokens)
    of_response = 1.0 / (counts.positions * responses)
    return of_response if aggregation == "response_sum" else of_response / max(1, tokens)


def rmt_loss(ntp_log_probs: Tensor, ntp_weights: Tensor, rl_terms: Tensor, rl_weights: Tensor) -> tuple[Tensor, Tensor]:
    """(- J_RL, lambda * L_NTP), whose sum is minimized.

    Eq. 7's objective is to be maximized; the paper's Eq. 9 adds it as it is, which would push correct answers away.
    Arguments (labels,) and (response tokens,); terms are those of a `PolicyLoss`, less beta times the KL estimate.
    """
    return -(rl_weights * rl_terms).sum(), -(ntp_weights * ntp_log_probs).sum()
