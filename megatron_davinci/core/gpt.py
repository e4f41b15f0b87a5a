"""Megatron's GPTModel that scores chosen tokens in place of returning every logit.

T = rows of the micro-batch on this rank, N = rows whose next token is asked for, h = hidden size.
"""

from typing import Any, NamedTuple

from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import ColumnParallelLinear
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    gather_from_tensor_model_parallel_region,
)
from torch import Tensor

from megatron_davinci.core.attention.positioned import PositionRotary
from megatron_davinci.core.losses.entropy import top_entropies
from megatron_davinci.core.losses.token_scores import score_tokens
from megatron_davinci.core.patches import take_class


class LabelScores(NamedTuple):
    """Row `rows[i]` of the micro-batch, of T on this context-parallel rank, predicts token `labels[i]`; both (N,).

    `temperatures` (N,) divide the logits, where they are given.
    """

    rows: Tensor
    labels: Tensor
    temperatures: Tensor | None = None


class TopKEntropy(NamedTuple):
    """How uncertain the model is of what follows row `rows[i]`, counting the `top` likeliest tokens alone."""

    rows: Tensor
    top: int


class NextTokenLogits(NamedTuple):
    """All logits of what follows row `rows[i]`."""

    rows: Tensor


OutputRequest = LabelScores | TopKEntropy | NextTokenLogits


class ScoringGPTModel(GPTModel):
    """GPTModel; with `labels=Predictions`, the last stage gives log-probabilities and entropies in nats, both (N,).

    With `labels=Uncertainty` it gives entropies, with `labels=NextTokens` all logits (N, vocabulary).

    `vocab_size` leaves out what pads the vocabulary to a multiple of the tensor-parallel size: it gets no probability.
    """

    def __init__(self, *args: Any, unpadded_vocab_size: int, frequencies: Tensor | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        take_class(self.rotary_pos_emb, PositionRotary)  # which turns by given positions too, and is the same else
        if frequencies is not None:
            self.rotary_pos_emb.inv_freq = frequencies.to(self.rotary_pos_emb.inv_freq.device)
        if self.post_process:
            # GPTModel makes its output layer itself. Ours has the same weights, and differs in `forward` alone.
            take_class(self.output_layer, ScoringOutputLayer)
            self.output_layer.unpadded_vocab_size = unpadded_vocab_size

    def _postprocess(self, hidden_states: Tensor, labels: OutputRequest | None = None, **rest: Any) -> Any:
        if labels is None or not self.post_process:
            return super()._postprocess(hidden_states=hidden_states, labels=None, **rest)
        shared = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        # A call, so that the hooks run which wait for weights that are still being gathered.
        return self.output_layer(hidden_states, weight=shared, request=labels)


class ScoringOutputLayer(ColumnParallelLinear):
    """ColumnParallelLinear that can score tokens, a chunk of rows at a time."""

    unpadded_vocab_size: int

    def forward(
        self,
        input_: Tensor,
        weight: Tensor | None = None,
        request: OutputRequest | None = None,
        **rest: Any,
    ) -> Any:
        """Logits and bias as upstream; with `request`, float32 (N,). input_ (T, 1, h), T/TP under SP."""
        if request is None:
            return super().forward(input_, weight, **rest)
        if self.sequence_parallel:
            rows = gather_from_sequence_parallel_region(input_, group=self.tp_group)
        else:
            rows = copy_to_tensor_model_parallel_region(input_, group=self.tp_group)
        weight = self.weight if weight is None else weight
        start = self.tp_group.rank() * weight.size(0)
        valid = max(1, min(weight.size(0), self.unpadded_vocab_size - start))
        assert start < self.unpadded_vocab_size, "a shard of padding alone"
        chosen = rows[request.rows, 0]
        if isinstance(request, NextTokenLogits):
            logits = gather_from_tensor_model_parallel_region(chosen @ weight.t(), group=self.tp_group)
            return logits[:, : self.unpadded_vocab_size].float()
        if isinstance(request, TopKEntropy):
            return top_entropies(chosen, weight[:valid], request.top, self.tp_group)
        return score_tokens(chosen, weight[:valid], request.labels, start, self.tp_group, request.temperatures)
