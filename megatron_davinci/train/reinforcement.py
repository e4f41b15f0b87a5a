"""Reinforcement mid-training as work for the trainer: a step's documents with their rollouts as trees (Eq. 9)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor

from megatron_davinci.attention.packed import PackedSegments
from megatron_davinci.attention.tree import TreeSegments
from megatron_davinci.data.batches import StageBatches, share_of_rank
from megatron_davinci.data.packed import padding_starts
from megatron_davinci.models.gpt import Predictions
from megatron_davinci.objectives.grpo import is_clipped, kl_terms, policy_terms
from megatron_davinci.objectives.rmt import rmt_loss
from megatron_davinci.rmt.batch import Answered, grow_trees, pack_trees
from megatron_davinci.rmt.inputs import ReinforcementInputs
from megatron_davinci.rmt.options import Reinforced, Reinforcing
from megatron_davinci.rmt.scores import describe, score_group
from megatron_davinci.rmt.tree import Tree, TreeBatch, chains, lay_out
from megatron_davinci.train.counts import BatchCounts, count_batch
from megatron_davinci.train.next_token import rounds_of
from megatron_davinci.train.parallel import data_rank
from megatron_davinci.train.step import ForwardOutput, Work, loss_and_reports

PARTS = ("policy", "ntp")
REPORTS = ("loss", "policy_loss", "ntp_loss", "kl", "clipped", "entropy", "log_prob_gap", "log_prob_gap_squared")


@dataclass(frozen=True)
class ReinforcementStep:
    """The work of a step, and what is known of it before it is done."""

    work: Work
    facts: dict[str, float]
    options: Reinforcing

    def only(self, part: str) -> Work:
        """The same work with one loss alone, "policy" or "ntp"."""
        return replace(self.work, micro_batches=[_with_one_loss(batch, part) for batch in self.work.micro_batches])

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """What is reported of a finished step, from the sums over its tokens; nothing of what was not measured."""
        tokens, options = self.facts["policy_tokens"], self.options
        found = {**self.facts, "policy_loss": sums["policy_loss"]}
        if options.ntp_lambda:
            found["ntp_loss"] = sums["ntp_loss"] / options.ntp_lambda
        if tokens:
            found["policy_entropy"] = sums["entropy"] / tokens
            found["rollout_log_prob_gap"] = sums["log_prob_gap"] / tokens
            found["rollout_log_prob_gap_rms"] = (sums["log_prob_gap_squared"] / tokens) ** 0.5
            if options.kl_beta:
                found["kl"] = sums["kl"] / tokens
            if options.policy.kind != "reinforce":
                found["clipped_share"] = sums["clipped"] / tokens
        return found


class Reinforcement:
    """Turns the rollouts of a stage's steps into work. `first_step`: the run's step with which the stage begins."""

    def __init__(self, stage: StageBatches, inputs: ReinforcementInputs, first_step: int) -> None:
        assert isinstance(stage.recipe.objective, Reinforced)
        self._options = stage.recipe.objective
        self._stage, self._first_step = stage, first_step
        self._asker, self._texts, self._replay = inputs.asker, inputs.texts, inputs.replay

    @property
    def component_norms_every(self) -> int:
        """Steps between measurements of each loss's gradient by itself; 0: none."""
        return self._options.component_norms_every

    def rollouts(self, batch: int) -> str:
        """Identity of the rollouts for a step, as this rank sees them."""
        return self._replay.fingerprint(self._first_step + batch)

    def step(self, batch: int, device: torch.device) -> ReinforcementStep:
        """One step of the stage; every rank reads all of its rollouts, and takes its share of the trees."""
        answered = self._answers(batch)
        options, recipe = self._options, self._stage.recipe
        width = recipe.seq_length * recipe.batch.micro_batch_size
        # where nothing is left to learn, a row of padding: every rank takes part in the step
        rows = pack_trees(grow_trees(answered, options, self._asker), width, options.tree) or [[]]
        rank, size = data_rank()
        share = [row for [row] in share_of_rank(rows, rank, size, 1, rounds_of(recipe))]
        counts = self._counts(answered, rows, width * len(share) * size, device)
        micro_batches = [lay_out(row, width).to(device) for row in share]
        work = Work(partial(forward_step, options), micro_batches, width, counts, REPORTS)
        return ReinforcementStep(work, self._facts(batch, answered, rows), options)

    def _answers(self, batch: int) -> list[Answered]:
        """The documents of a step with their rollouts, read and rewarded."""
        asked = self._asker.asks(batch)
        groups = iter(self._replay.read(self._first_step + batch, [ask for about in asked for ask in about.asks]))
        answered = []
        for about in asked:
            judges = [self._asker.judge(about, ask) for ask in about.asks]
            scored = [score_group(next(groups), judge, self._options, self._texts) for judge in judges]
            predicted = torch.zeros(len(about.ids), dtype=torch.bool)
            predicted[1:] = torch.from_numpy(self._stage.documents.predicted(about.span))
            answered.append(Answered(about, predicted, scored))
        return answered

    def _counts(
        self, answered: Sequence[Answered], rows: list[list[Tree]], num_rows: int, device: torch.device
    ) -> BatchCounts:
        """As for next-token prediction; tokens are those of documents and rollouts, prefixes once for each tree."""
        rank, size = data_rank()
        spans = [document.about.span for document in answered]
        epochs = sorted({span.epoch for span in spans})
        counts = count_batch(self._stage.documents, [spans[rank::size]], epochs, num_rows, device)
        trees = list(chain.from_iterable(rows))
        return replace(
            counts,
            tokens=sum(tree.num_rows for tree in trees),
            labels=sum(tree.num_labels for tree in trees),
            squared_lengths=2 * sum(tree.num_pairs for tree in trees),
        )

    def _facts(self, batch: int, answered: Sequence[Answered], rows: list[list[Tree]]) -> dict[str, float]:
        """What is known before the step, for its metrics."""
        trees = list(chain.from_iterable(rows))
        policy_tokens = sum(len(r.tokens) for tree in trees for branch in tree.branches for r in branch.responses)
        alone = sum(part.num_rows for tree in trees for part in chains(tree))
        budget = self._asker.budget(batch)
        return {
            **({"budget": budget} if budget else {}),
            **describe([scored for document in answered for scored in document.groups]),
            "empty_levels": sum(document.about.empty_levels for document in answered),
            "unboxable_positions": sum(document.about.unboxable for document in answered),
            "documents_without_position": sum(not document.about.asks for document in answered),
            "policy_tokens": policy_tokens,
            "tree_saving": alone / max(1, sum(tree.num_rows for tree in trees)),
        }


def forward_step(options: Reinforcing, batches: Iterator[TreeBatch], chunk: DistributedDataParallel) -> ForwardOutput:
    """Megatron's forward_step_func: one forward pass for both losses."""
    batch = next(batches)
    policy = batch.policy.triples
    temperatures = None
    if options.temperature != 1.0:
        of_policy = torch.full_like(policy.weights, options.temperature)
        temperatures = torch.cat([torch.ones_like(batch.ntp.weights), of_policy])
    predictions = Predictions(
        torch.cat([batch.ntp.rows, policy.rows]), torch.cat([batch.ntp.labels, policy.labels]), temperatures
    )
    output = chunk(
        batch.tokens[None],
        batch.position_ids[None],
        None,
        labels=predictions,
        packed_seq_params=segments_of(batch, options.tree),
    )
    return output, partial(weighted_losses, options, batch)


def segments_of(batch: TreeBatch, shared: bool) -> TreeSegments | PackedSegments:
    """What attention needs: the calls of trees or, where nothing is shared, where each sequence ends."""
    if shared:
        return TreeSegments(position_ids=batch.position_ids, calls=batch.calls)
    starts = [0, *batch.ends[:-1]] if batch.ends else []
    used, width = max([0, *batch.ends]), len(batch.tokens)
    return PackedSegments.of([*starts, *padding_starts(used, width), width], batch.tokens.device)


def weighted_losses(options: Reinforcing, batch: TreeBatch, scores: tuple[Tensor, Tensor]) -> Any:
    """Both losses of a micro-batch, for Megatron, and the sums over response tokens that are reported."""
    log_probs, entropies = scores
    ntp, policy = log_probs.split([len(batch.ntp.rows), len(batch.policy.triples.rows)])
    now, written = policy.detach(), batch.policy.log_probs
    kind, cap = options.policy.kind, options.policy.importance_cap
    old = written if cap is None else now
    low, high = options.policy.clip_low, options.policy.upper_clip
    terms = policy_terms(kind, policy, old, batch.policy.advantages, low, high)
    if cap is not None:
        terms = terms * (now - written).exp().clamp(max=cap)
    kl = kl_terms(policy, batch.policy.reference_log_probs) if options.kl_beta else torch.zeros_like(now)
    policy_loss, ntp_loss = rmt_loss(ntp, batch.ntp.weights, terms - options.kl_beta * kl, batch.policy.triples.weights)
    gap = now - written
    return loss_and_reports(
        policy_loss + ntp_loss,
        policy_loss=policy_loss,
        ntp_loss=ntp_loss,
        kl=kl.sum(),
        clipped=is_clipped(now, old, batch.policy.advantages, low, high).sum(),
        entropy=entropies[len(batch.ntp.rows) :].sum(),
        log_prob_gap=gap.abs().sum(),
        log_prob_gap_squared=gap.square().sum(),
    )


def _with_one_loss(batch: TreeBatch, part: str) -> TreeBatch:
    """The same rows and labels, of which those of the other loss weigh nothing."""
    if part == "policy":
        return replace(batch, ntp=replace(batch.ntp, weights=torch.zeros_like(batch.ntp.weights)))
    triples = batch.policy.triples
    silent = replace(triples, weights=torch.zeros_like(triples.weights))
    return replace(batch, policy=replace(batch.policy, triples=silent))
