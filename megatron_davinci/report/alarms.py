"""What is wrong with a run, as its metrics show it. Torch-free.

Each rule looks at the last steps, or at all of them, and says nothing where its metric was not measured.
"""

from collections.abc import Callable, Iterator, Sequence
from statistics import fmean, median

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from megatron_davinci.report.blocks import Alarm, ShownNumber
from megatron_davinci.report.numbers import LAST_STEPS, at_end, mean_of, plural, shown
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


def _above(metric: str, limit: float, said: str, remedy: str) -> Rule:
    """A rule: the mean of a metric over the last steps is above a limit."""

    def rule(run: RunData) -> Iterator[Alarm]:
        found = at_end(run, metric)
        if found is not None and found.value > limit:
            yield Alarm(metric, found, said, remedy)

    return rule


def _padding(run: RunData) -> Iterator[Alarm]:
    """Over all steps of next-token training: the rows of trees are what responses make them."""
    lines = [line for line in run.steps if "reward" not in line]
    values = [(line["step"], value) for line in lines if (value := number_of(line, "padding_fraction")) is not None]
    found = mean_of(run, "padding_fraction", values)
    if found is not None and found.value > PADDING:
        said = "of the rows that were computed hold padding"
        remedy = "raise the batch, or pack sequences beforehand (davinci data pack, batch.unit: sequences)"
        yield Alarm("padding_fraction", found, said, remedy)


def _entropy_collapse(run: RunData) -> Iterator[Alarm]:
    values, now = run.values("policy_entropy"), at_end(run, "policy_entropy")
    if now is None or len(values) < 2 * LAST_STEPS:
        return
    if now.value < ENTROPY_LEFT * fmean(value for _, value in values[:LAST_STEPS]):
        yield Alarm(
            "policy_entropy",
            now,
            "nats are left, less than a tenth of what it was at first: the policy no longer explores",
            "lower the learning rate, raise kl_beta or clip_high, or stop here",
        )


def _spikes(metric: str) -> Rule:
    """A rule: a metric jumps. Each stage is looked at by itself; the loss of one with rewards may jump."""

    def rule(run: RunData) -> Iterator[Alarm]:
        found = []
        for lines in run.stages:
            if metric != "loss" or not any("reward" in line for line in lines):
                known = ((line["step"], number_of(line, metric)) for line in lines)
                found += spikes([(step, value) for step, value in known if value is not None])
        if found:
            first = ", ".join(map(str, found[:5])) + (", ..." if len(found) > 5 else "")
            source = f"{run.name}/metrics.jsonl: {metric}, number of spikes"
            yield Alarm(
                metric,
                ShownNumber(len(found), str(len(found)), source),
                f"{plural(len(found), 'spike')}, at step {first}: far above the steps before",
                "look at what these steps were trained on; lower the learning rate or clip_grad, or warm up longer",
            )

    return rule


def _lagging_rank(run: RunData) -> Iterator[Alarm]:
    lines = [line for line in run.steps[-_WINDOW:] if number_of(line, "slowest_over_median") is not None]
    ranks = [number_of(line, "slowest_rank") for line in lines]
    rank = max(set(ranks), key=ranks.count, default=None)
    if rank is None or len(lines) < LAST_STEPS:
        return
    times = median(line["slowest_over_median"] for line in lines)
    if times > LAGGING and ranks.count(rank) > len(ranks) / 2:
        first, last = lines[0]["step"], lines[-1]["step"]
        source = f"{run.name}/metrics.jsonl: slowest_over_median, median of steps {first} to {last}"
        yield Alarm(
            "slowest_over_median",
            shown(times, "slowest_over_median", source),
            f"times the median of all ranks is the time of rank {rank:.0f}: the others wait for it",
            "look at that machine: its GPU's clocks, its memory, its neighbours",
        )


def _not_finite(run: RunData) -> Iterator[Alarm]:
    steps = [line["step"] for line in run.steps if line.get("skipped") == 1 or line.get("loss", 0.0) is None]
    if steps:
        source = f"{run.name}/metrics.jsonl: skipped, number of steps"
        yield Alarm(
            "skipped",
            ShownNumber(len(steps), str(len(steps)), source),
            f"{plural(len(steps), 'step')} skipped, the last one {steps[-1]}: its loss or gradient was not finite",
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
    _padding,
    _lagging_rank,
)
