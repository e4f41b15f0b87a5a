"""What is wrong with a run, as its metrics show it. Torch-free.

Each rule looks at the last steps, or at all of them, and says nothing where its metric was not measured.
"""

from collections.abc import Callable, Iterator, Sequence
from statistics import fmean, median

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from megatron_davinci.report.blocks import Alarm, ShownNumber
from megatron_davinci.report.numbers import LAST_STEPS, shown
from megatron_davinci.report.run_data import RunData, number_of

Rule = Callable[[RunData], Iterator[Alarm]]

TRUNCATED, NO_VARIANCE, PADDING, LAGGING = 0.5, 0.8, 0.05, 1.2
LOG_PROB_GAP = 0.05  # nats; an engine in bf16 is off by 0.01 to 0.02
ENTROPY_LEFT = 0.1  # of what it was at first
_WINDOW, _DEVIATIONS, _RISE = 50, 8.0, 1.2  # a spike is that far above the median of the steps before it


def alarms_of(run: RunData) -> list[Alarm]:
    """Every alarm that a run raises."""
    return [alarm for rule in _RULES for alarm in rule(run)]


def spikes(values: Sequence[tuple[int, float]]) -> list[int]:
    """Steps whose value is above the 50 steps before it by 8 median absolute deviations, and by a fifth."""
    if len(values) <= _WINDOW:
        return []
    numbers = np.array([value for _, value in values])
    before, after = sliding_window_view(numbers, _WINDOW)[:-1], numbers[_WINDOW:]
    middle = np.median(before, axis=1)
    spread = np.median(np.abs(before - middle[:, None]), axis=1)
    high = (after > middle + _DEVIATIONS * spread) & (after > _RISE * middle)
    return [values[_WINDOW + at][0] for at in np.flatnonzero(high).tolist()]


def _above(metric: str, limit: float, said: str, remedy: str, last: int | None = LAST_STEPS) -> Rule:
    """A rule: the mean of a metric, over the last steps or all, is above a limit."""

    def rule(run: RunData) -> Iterator[Alarm]:
        values = run.values(metric)
        values = values[-last:] if last else values
        if values and (mean := fmean(value for _, value in values)) > limit:
            source = f"{run.name}/metrics.jsonl: {metric}, mean of steps {values[0][0]} to {values[-1][0]}"
            yield Alarm(metric, shown(mean, metric, source), said, remedy)

    return rule


def _entropy_collapse(run: RunData) -> Iterator[Alarm]:
    values = run.values("policy_entropy")
    if len(values) < 2 * LAST_STEPS:
        return
    first, last = values[:LAST_STEPS], values[-LAST_STEPS:]
    now = fmean(value for _, value in last)
    if now < ENTROPY_LEFT * fmean(value for _, value in first):
        source = f"{run.name}/metrics.jsonl: policy_entropy, mean of steps {last[0][0]} to {last[-1][0]}"
        yield Alarm(
            "policy_entropy",
            shown(now, "policy_entropy", source),
            "nats are left, less than a tenth of what it was at first: the policy no longer explores",
            "lower the learning rate, raise kl_beta or clip_high, or stop here",
        )


def _spikes(metric: str) -> Rule:
    def rule(run: RunData) -> Iterator[Alarm]:
        found = [] if run.learns_from_rollouts and metric == "loss" else spikes(run.values(metric))
        if found:
            first = ", ".join(map(str, found[:5])) + (", ..." if len(found) > 5 else "")
            source = f"{run.name}/metrics.jsonl: {metric}, number of spikes"
            yield Alarm(
                metric,
                ShownNumber(len(found), str(len(found)), source),
                f"spikes, at step {first}: far above the steps before",
                "look at what these steps were trained on; lower the learning rate or clip_grad, or warm up longer",
            )

    return rule


def _lagging_rank(run: RunData) -> Iterator[Alarm]:
    lines = [line for line in run.steps[-_WINDOW:] if number_of(line, "slowest_over_median") is not None]
    ranks = [line.get("slowest_rank") for line in lines]
    if len(lines) < LAST_STEPS:
        return
    rank = max(set(ranks), key=ranks.count)
    times = median(line["slowest_over_median"] for line in lines)
    if times > LAGGING and ranks.count(rank) > len(ranks) / 2:
        first, last = lines[0]["step"], lines[-1]["step"]
        source = f"{run.name}/metrics.jsonl: slowest_over_median, median of steps {first} to {last}"
        yield Alarm(
            "slowest_over_median",
            shown(times, "slowest_over_median", source),
            f"times the median is what rank {rank} takes: the others wait for it",
            "look at that machine: its GPU's clocks, its memory, its neighbours",
        )


def _not_finite(run: RunData) -> Iterator[Alarm]:
    steps = [line["step"] for line in run.steps if line.get("skipped") or line.get("loss", 0.0) is None]
    if steps:
        source = f"{run.name}/metrics.jsonl: skipped, number of steps"
        yield Alarm(
            "skipped",
            ShownNumber(len(steps), str(len(steps)), source),
            f"steps were skipped, the last one {steps[-1]}: a loss or a gradient was not finite",
            "lower the learning rate; look at what these steps were trained on",
        )


_RULES: tuple[Rule, ...] = (
    _not_finite,
    _spikes("loss"),
    _spikes("grad_norm"),
    _above(
        "truncated_fraction",
        TRUNCATED,
        "of the last responses were cut off at max_tokens: they have no answer, or go on after it",
        "raise objective.max_tokens, lower the budget, or have responses end with their answer",
    ),
    _above(
        "zero_advantage_fraction",
        NO_VARIANCE,
        "of the last groups had the same reward for every response: they teach nothing",
        "ask for positions that are neither hopeless nor sure (objective.difficulty), or raise group_size",
    ),
    _entropy_collapse,
    _above(
        "rollout_log_prob_diff",
        LOG_PROB_GAP,
        "nats lie between the engine's log-probabilities and the trainer's: it samples from another policy",
        "look whether the engine has this step's weights; set objective.policy.importance_ratio_cap",
    ),
    _above(
        "padding_fraction",
        PADDING,
        "of the rows that were computed hold padding",
        "raise the batch, or pack sequences beforehand (davinci data pack, batch.unit: sequences)",
        last=None,
    ),
    _lagging_rank,
)
