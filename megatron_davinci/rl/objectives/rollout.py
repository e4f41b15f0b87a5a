"""Objectives that learn from rollouts: a step's documents with their rollouts as trees (Eq. 9)."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from data_prep import InputError
from megatron_davinci.config.objectives import RolloutOptions
from megatron_davinci.config.registries import POLICY_LOSSES
from megatron_davinci.core.counts import BatchCounts, count_batch
from megatron_davinci.core.groups import all_gather_object, data_rank, is_main_rank
from megatron_davinci.core.objective import Objective
from megatron_davinci.core.step import GlobalBatch, Trainer
from megatron_davinci.rl.batch import ScoredDocument, deal_trees, grow_trees
from megatron_davinci.rl.describe_rollouts import describe_prompts
from megatron_davinci.rl.grading import group_metrics, score_group
from megatron_davinci.rl.inputs import RolloutInputs
from megatron_davinci.rl.objectives.sampler import Sampled, Sampler
from megatron_davinci.rl.policy_step import REPORTS, policy_forward_step
from megatron_davinci.rl.prompt_source import DocumentPrompts
from megatron_davinci.rl.rollout_files import read_header, remove_after
from megatron_davinci.rl.scored_rollouts import scored_directory, write_scored
from megatron_davinci.rl.tree import Tree, TreeBatch, pack_row, unshare

LOSSES = ("policy", "ntp")


class RolloutObjective(Objective):
    """Trains on the rollouts of a stage's steps: by an engine, which answers first, or out of files."""

    inputs: RolloutInputs

    def __init__(self, inputs: RolloutInputs, trainer: Trainer) -> None:
        super().__init__(inputs, trainer)
        self._options, self._source = inputs.options, inputs.prompt_source
        self._run_directory = Path(inputs.recipe.checkpoint.dir)
        self._sampler: Sampler | None = None
        self._known_weights: dict[int, str] = {}

    def resume(self, step: int) -> None:
        """See `Objective`: rollouts after `step` are of a course that the run has left."""
        if is_main_rank():
            remove_after(scored_directory(self._run_directory), step)
        if not self._options.has_engine:
            return
        if is_main_rank():
            self._remove_rollouts_of_another_course(step)
        self._sampler = Sampler.of(self.inputs, self.trainer)
        self._sampler.known_weights = self._known_weights

    def _remove_rollouts_of_another_course(self, step: int) -> None:
        """Remove files for steps that this run has yet to reach, but for those that policies until now have written."""
        first = self.inputs.first_step
        last = step + (self._options.rollouts.lag_limit() or 0)
        if step == 0:
            last = -1  # those for the first step go too: nothing ties them to these weights
        elif step < first:
            last = first - 1
        elif step >= first + self.stage.num_batches:
            return
        remove_after(self.inputs.replay.directory, last)

    def load_state(self, state: dict[str, Any]) -> None:
        """See `Objective`."""
        self._known_weights = {int(step): weights for step, weights in state.get("rollout_weights", {}).items()}

    def state(self) -> dict[str, Any]:
        """See `Objective`: fingerprints of the policies that rollouts on disk may come from."""
        known = {} if self._sampler is None else self._sampler.known_weights
        return {"rollout_weights": {str(step): weights for step, weights in known.items()}} if known else {}

    def settle(self) -> None:
        """See `Objective`: answers that are being written for the next step are waited for, and put on disk."""
        if self._sampler is not None:
            self._sampler.write_ahead()

    def close(self) -> None:
        """See `Objective`."""
        if self._sampler is not None:
            self._sampler.close()

    def batch(self, step: int) -> GlobalBatch:
        """See `Objective`. Every rank reads all rollouts of the step, and takes its share of the trees."""
        sampled = self._sample(step)
        with self.trainer.timers("data"):
            self._check_same_rollouts(step)
            scored = self._score(step)
            if is_main_rank():
                self._write_scored(step, scored)
            return self._pack(step, scored, sampled)

    def _metrics(self, step: int, facts: Mapping[str, Any], sums: Mapping[str, float]) -> dict[str, Any]:
        """Those of a finished step. Raises FloatingPointError, on every rank, where its rollouts were not by the policy
        that they say."""
        found = token_metrics(self._options, facts["policy_tokens"], sums)
        rollouts = self._options.rollouts
        limit = rollouts.log_prob_limit(self.stage.recipe.megatron.bf16)
        gap = found.get("rollout_log_prob_diff", 0.0)
        if limit is not None and gap > limit:  # what is no number is a skipped step's affair
            path = self.inputs.replay.file(self.inputs.first_step + step)
            if is_main_rank():
                path.unlink(missing_ok=True)
            raise FloatingPointError(
                f"rollout_log_prob_diff is {gap:.3g} nats, and at most {limit:g} is rounding: the engine has not "
                f"answered by the trainer's weights. Nothing of this step is saved, and {path.name} is removed: "
                "start again from the last checkpoint, or raise objective.rollouts.max_log_prob_diff"
            )
        return {**facts, **found}

    def _sample(self, step: int) -> dict[str, float]:
        """Have the engine answer, where there is one; gives what it reports."""
        sampled = Sampled() if self._sampler is None else self._sampler.write(step)
        return {"rollout_tokens_per_second": sampled.tokens / sampled.seconds} if sampled.tokens else {}

    def _check_same_rollouts(self, step: int) -> None:
        """Raise InputError on every rank where they see different files: their losses would be of different rows."""
        at = self.inputs.first_step + step
        if len(set(all_gather_object(self.inputs.replay.fingerprint(at)))) > 1:
            raise InputError(
                f"ranks see different rollouts for step {at}: keep them on a file system that all share, and let each "
                "file appear by rename, once"
            )

    def _score(self, step: int) -> list[ScoredDocument]:
        """The documents of a step with their rollouts, read and rewarded."""
        documents = self._source.prompts(step)
        specs = [spec for document in documents for spec in document.specs]
        groups = iter(self.inputs.replay.read(self.inputs.first_step + step, specs))
        found = []
        for document in documents:
            graders = [self._source.grader(document, spec) for spec in document.specs]
            scored = [score_group(next(groups), grader, self._options, self.inputs.texts) for grader in graders]
            found.append(ScoredDocument(document, self._predicted(document), scored))
        return found

    def _predicted(self, document: DocumentPrompts) -> Tensor:
        """(tokens,): what of a document its next-token loss is of."""
        predicted = torch.zeros(len(document.ids), dtype=torch.bool)
        predicted[1:] = torch.from_numpy(self.stage.documents.predicted(document.span))
        return predicted

    def _write_scored(self, step: int, scored: Sequence[ScoredDocument]) -> None:
        """For people: what this step trains on, under the number that metrics.jsonl gives the step.

        Other ranks wait for this one meanwhile: what goes wrong is said, and ends no run.
        """
        described = (
            describe_prompts(document.prompts, document.groups, self.stage, self._source, self.inputs.texts)
            for document in scored
        )
        number = self.inputs.first_step + step + 1
        try:
            write_scored(self._run_directory, number, self.stage.name, chain.from_iterable(described))
        except Exception as error:
            print(f"scored rollouts of step {number} could not be written: {error}", file=sys.stderr, flush=True)

    def _pack(self, step: int, scored: Sequence[ScoredDocument], sampled: dict[str, float]) -> GlobalBatch:
        options, device = self._options, self.trainer.device
        rank, size = data_rank()
        dealt = deal_trees(grow_trees(scored, options, self._source), self.stage.rules, options.share_prefix, size)
        trees = [tree for rows in dealt for row in rows for tree in row.trees]
        widths = [row.width for row in dealt[rank]]
        facts = self._facts(step, scored, trees)
        batch = GlobalBatch(
            forward=partial(policy_forward_step, options),
            micro_batches=[pack_row(row.trees, row.width).to(device) for row in dealt[rank]],
            widths=widths,
            counts=self._counts(scored, trees, sum(widths), device),
            reports=REPORTS,
            metrics=lambda sums: self._metrics(step, facts, sums) | sampled,
        )
        interval = options.component_norms_interval
        due = LOSSES if interval and step % interval == 0 else ()
        return replace(batch, losses={name: partial(_with_one_loss, batch, name) for name in due})

    def _counts(
        self, scored: Sequence[ScoredDocument], trees: Sequence[Tree], num_rows: int, device: torch.device
    ) -> BatchCounts:
        """As for next-token prediction; tokens are those of documents and rollouts, prefixes once for each tree."""
        rank, size = data_rank()
        spans = [document.prompts.span for document in scored]
        epochs = sorted({span.epoch for span in spans})
        counts = count_batch(self.stage.documents, [spans[rank::size]], epochs, num_rows, device)
        return replace(
            counts,
            tokens=sum(tree.num_rows for tree in trees),
            labels=sum(tree.num_labels for tree in trees),
            squared_lengths=2 * sum(tree.num_pairs for tree in trees),
        )

    def _rewards(self, scored: Sequence[ScoredDocument]) -> dict[str, Any]:
        """Mean reward by corpus, where the stage has several."""
        names, found = self.stage.corpus_names, {}
        for number, name in enumerate(names if len(names) > 1 else ()):
            of_corpus = [
                score.reward
                for document in scored
                if self.stage.documents.prefix_index(document.prompts.span.document) == number
                for group in document.groups
                for score in group.scores
            ]
            if of_corpus:
                found[name] = fmean(of_corpus)
        return {"rewards": found} if found else {}

    def _origin(self, step: int) -> dict[str, Any]:
        """Which weights have answered, where an engine has its own, and how many prompts were answered anew."""
        at = self.inputs.first_step + step
        header = read_header(self.inputs.replay.file(at))
        weights, resampled = header.get("weights"), header.get("resampled")
        found = {} if weights is None else {"rollout_weights": weights, "rollout_lag": at - header["policy_step"]}
        return found if resampled is None else {**found, "resampled_prompts": resampled}

    def _facts(self, step: int, scored: Sequence[ScoredDocument], trees: Sequence[Tree]) -> dict[str, Any]:
        """What is known before the step, for its metrics."""
        policy_tokens = sum(len(r.tokens) for tree in trees for branch in tree.branches for r in branch.responses)
        alone = sum(part.num_rows for tree in trees for part in unshare(tree))
        budget = self._source.budget(step)
        return {
            **self._origin(step),
            **({"budget": budget} if budget else {}),
            **group_metrics([group for document in scored for group in document.groups]),
            **self._rewards(scored),
            "empty_levels": sum(document.prompts.empty_levels for document in scored),
            "unboxable_positions": sum(document.prompts.unboxable for document in scored),
            "documents_without_prompt": sum(not document.prompts.specs for document in scored),
            "policy_tokens": policy_tokens,
            "prefix_sharing_ratio": alone / max(1, sum(tree.num_rows for tree in trees)),
        }


def token_metrics(options: RolloutOptions, tokens: float, sums: Mapping[str, float]) -> dict[str, float]:
    """What is reported of a finished step, from the sums over its `tokens` response tokens: only what was measured."""
    found = {"policy_loss": sums["policy_loss"]}
    if options.ntp_lambda:
        found["ntp_loss"] = sums["ntp_loss"] / options.ntp_lambda
    if not tokens:
        return found
    found["policy_entropy"] = sums["entropy"] / tokens
    found["rollout_log_prob_diff"] = sums["log_prob_diff"] / tokens
    found["rollout_log_prob_diff_rms"] = (sums["log_prob_diff_squared"] / tokens) ** 0.5
    if options.kl_beta:
        found["kl"] = sums["kl"] / tokens
    if POLICY_LOSSES.get(options.policy.kind).clipped is not None:
        found["clip_fraction"] = sums["clipped"] / tokens
    return found


def _with_one_loss(batch: GlobalBatch, name: str) -> GlobalBatch:
    """The same rows and labels, of which those of the other loss weigh nothing."""
    return replace(batch, micro_batches=[_silenced(each, name) for each in batch.micro_batches])


def _silenced(batch: TreeBatch, name: str) -> TreeBatch:
    if name == "policy":
        return replace(batch, ntp=replace(batch.ntp, weights=torch.zeros_like(batch.ntp.weights)))
    weighted = batch.policy.weighted
    silent = replace(weighted, weights=torch.zeros_like(weighted.weights))
    return replace(batch, policy=replace(batch.policy, weighted=silent))
