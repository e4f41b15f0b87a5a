"""Next-token prediction over (row, label, weight) triples. N = number of triples."""

from torch import Tensor


def next_token_loss(log_probs: Tensor, weights: Tensor) -> Tensor:
    """- sum_t w_t * log p(label_t | row_t), a scalar: the mean over all labels when every weight is 1 / their number.

    log_probs (N,) in nats, weights (N,). The weights are fixed from counts of the whole global batch, so the sum over
    micro-batches and ranks is the loss of the batch, and its gradient, however the batch is split.
    """
    return -(weights * log_probs).sum()
