"""One micro-batch of trees through the model, and both losses of it (Eq. 9)."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor

from megatron_davinci.config.objectives import Policy, RolloutOptions
from megatron_davinci.config.registries import KL_ESTIMATORS, POLICY_LOSSES
from megatron_davinci.core.attention.packed import PackedSegments
from megatron_davinci.core.attention.positioned import TreeSegments
from megatron_davinci.core.gpt import LabelScores
from megatron_davinci.core.losses.policy import PolicyLoss, PolicyTokens
from megatron_davinci.core.losses.rmt import rmt_loss
from megatron_davinci.core.step import ForwardOutput, loss_and_reports
from megatron_davinci.data.packed import padding_starts
from megatron_davinci.rl.tree import TreeBatch

REPORTS = ("loss", "policy_loss", "ntp_loss", "kl", "clipped", "entropy", "log_prob_diff", "log_prob_diff_squared")


def policy_forward_step(
    options: RolloutOptions, batches: Iterator[TreeBatch], chunk: DistributedDataParallel
) -> ForwardOutput:
    """Megatron's forward_step_func: one forward pass for both losses."""
    batch = next(batches)
    policy = batch.policy.weighted
    temperatures = None
    if options.temperature != 1.0:
        of_policy = torch.full_like(policy.weights, options.temperature)
        temperatures = torch.cat([torch.ones_like(batch.ntp.weights), of_policy])
    predictions = LabelScores(
        torch.cat([batch.ntp.rows, policy.rows]), torch.cat([batch.ntp.labels, policy.labels]), temperatures
    )
    output = chunk(
        batch.tokens[None],
        batch.position_ids[None],
        None,
        labels=predictions,
        packed_seq_params=segments_of(batch, options.share_prefix),
    )
    return output, partial(weighted_losses, options, batch)


def segments_of(batch: TreeBatch, shared: bool) -> TreeSegments | PackedSegments:
    """What attention needs: the blocks of trees or, where nothing is shared, where each sequence ends."""
    if shared:
        return TreeSegments(position_ids=batch.position_ids, blocks=batch.blocks)
    starts = [0, *batch.ends[:-1]] if batch.ends else []
    used, width = max([0, *batch.ends]), len(batch.tokens)
    return PackedSegments.of([*starts, *padding_starts(used, width), width], batch.tokens.device)


def weighted_losses(options: RolloutOptions, batch: TreeBatch, scores: tuple[Tensor, Tensor]) -> Any:
    """The policy loss and the NTP loss of a micro-batch, for Megatron, and sums over response tokens to report."""
    log_probs, entropies = scores
    ntp, policy = log_probs.split([len(batch.ntp.rows), len(batch.policy.weighted.rows)])
    now, recorded, cap = policy.detach(), batch.policy.log_probs, options.policy.importance_ratio_cap
    loss = POLICY_LOSSES.get(options.policy.kind)
    old = recorded if cap is None else now
    tokens = PolicyTokens(policy, old, batch.policy.advantages, batch.policy.responses)
    clips = clips_of(options.policy, loss)
    terms = loss.terms(tokens, *clips)
    if cap is not None:
        terms = terms * (now - recorded).exp().clamp(max=cap)
    kl = torch.zeros_like(now)
    if options.kl_beta:
        kl = KL_ESTIMATORS.get(options.kl_estimator)(policy, batch.policy.reference_log_probs)
    policy_loss, ntp_loss = rmt_loss(
        ntp, batch.ntp.weights, terms - options.kl_beta * kl, batch.policy.weighted.weights
    )
    clipped = None if loss.clipped is None else loss.clipped(tokens._replace(log_probs=now), *clips)
    difference = now - recorded
    return loss_and_reports(
        policy_loss + ntp_loss,
        policy_loss=policy_loss,
        ntp_loss=ntp_loss,
        kl=kl.sum(),
        clipped=now.new_zeros(()) if clipped is None else clipped.sum(),
        entropy=entropies[len(batch.ntp.rows) :].sum(),
        log_prob_diff=difference.abs().sum(),
        log_prob_diff_squared=difference.square().sum(),
    )


def clips_of(policy: Policy, loss: PolicyLoss) -> tuple[float, float]:
    """(clip_low, clip_high): the recipe's, or the policy loss's own."""
    low = loss.clip_low if policy.clip_low is None else policy.clip_low
    return low, loss.clip_high if policy.clip_high is None else policy.clip_high
