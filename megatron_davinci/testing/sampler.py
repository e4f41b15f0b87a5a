"""The simplest sampler: one forward pass of the trees as far as they have grown, for every token."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron_davinci.rmt.asks import Asker, DocumentAsks
from megatron_davinci.rmt.tree import Branch, Response, Tree, TreeBatch, lay_out
from megatron_davinci.rollout import records
from megatron_davinci.train.reinforcement import segments_of
from megatron_davinci.train.step import Trainer, run_schedule

Tokens = list[list[int]]


def sample(
    trainer: Trainer,
    asker: Asker,
    asked: Sequence[DocumentAsks],
    responses: int,
    longest: int,
    end: int,
    key: list[int],
) -> list[records.Group]:
    """Responses to all asks at the objective's temperature, until `end` or `longest` tokens. One process alone.

    `key` settles the draws: the same weights give the same responses, whatever their prefixes are shared with.
    """
    prompts = [(about, ask) for about in asked for ask in about.asks]
    written: list[Tokens] = [[[] for _ in range(responses)] for _ in prompts]
    log_probs: list[list[list[float]]] = [[[] for _ in range(responses)] for _ in prompts]
    draws = np.random.default_rng(key).random((longest, len(prompts), responses))
    for place in range(longest):
        growing = [(n, r) for n, group in enumerate(written) for r, ids in enumerate(group) if ids[-1:] != [end]]
        if not growing:
            break
        scores = _next_token_scores(trainer, asker, prompts, written, growing)
        for (n, r), row in zip(growing, scores, strict=True):
            token = int((row.exp().cumsum(0) < draws[place, n, r]).sum().clamp(max=len(row) - 1))
            written[n][r].append(token)
            log_probs[n][r].append(min(0.0, float(row[token])))
    return [
        records.Group(ask, [records.Response(ids, known, ids[-1:] == [end]) for ids, known in zip(w, p, strict=True)])
        for (_, ask), w, p in zip(prompts, written, log_probs, strict=True)
    ]


def _next_token_scores(
    trainer: Trainer,
    asker: Asker,
    prompts: Sequence[tuple[DocumentAsks, records.Ask]],
    written: list[Tokens],
    growing: Any,
) -> Tensor:
    """Log-probabilities (growing responses, vocabulary), in double precision."""
    trees = []
    for (about, ask), group in zip(prompts, written, strict=True):
        trunk = torch.tensor([*asker.preamble, *about.ids[: ask.position].tolist()])
        instruction = torch.tensor(asker.instruction(ask.budget))
        # One token more, whose row predicts nothing: it is the place of what is asked for.
        grown = [Response(torch.tensor([*ids, 0]), torch.zeros(len(ids) + 1), 0.0, 0.0) for ids in group]
        trees.append(Tree(trunk, torch.zeros(len(trunk)), [Branch(len(trunk), instruction, grown)]))
    batch = lay_out(trees, sum(tree.num_rows for tree in trees))
    with torch.no_grad():
        how = {"forward_only": True, "collect_non_loss_data": True}
        [logits] = run_schedule(trainer.chunks, _forward, [batch], len(batch.tokens), **how)
    lengths = torch.tensor([len(ids) + 1 for group in written for ids in group])
    last = batch.policy.triples.rows[lengths.cumsum(0) - 1]  # the row that predicts each response's next token
    responses = len(written[0])
    chosen = last[[n * responses + r for n, r in growing]]
    return (logits[chosen].double() / asker.options.temperature).log_softmax(1)


def _forward(batches: Iterator[TreeBatch], chunk: Any) -> Any:
    batch = next(batches)
    output = chunk(
        batch.tokens[None], batch.position_ids[None], None, packed_seq_params=segments_of(batch, shared=True)
    )
    return output, lambda output, non_loss_data: output[0].clone()
