"""Numbers as a page shows them, each with the place in a file that it is from. Torch-free.

A source reads "NAME/metrics.jsonl: loss, step 132" or "NAME/metrics.jsonl: loss, mean of steps 123 to 132"; a test
works every number of a page out again from its source.
"""

from collections.abc import Sequence
from statistics import fmean, median

from megatron_davinci.report.blocks import ShownNumber
from megatron_davinci.report.metric_fields import find_field
from megatron_davinci.report.run_data import RunData, number_of

LAST_STEPS = 10  # a single batch is noisy: what a run has come to is the mean over these
_UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6))


def at_step(run: RunData, metric: str, step: int) -> ShownNumber | None:
    """A metric as it was after a step."""
    known = dict(run.values(metric))
    return None if step not in known else shown(known[step], metric, f"{_file(run)}: {metric}, step {step}")


def at_first(run: RunData, metric: str) -> ShownNumber | None:
    """A metric where it was measured first."""
    values = run.values(metric)
    return at_step(run, metric, values[0][0]) if values else None


def at_end(run: RunData, metric: str) -> ShownNumber | None:
    """The mean over the last steps at which a metric was measured, all of one stage."""
    return mean_of(run, metric, _last_steps(run, metric))


def _last_steps(run: RunData, metric: str) -> list[tuple[int, float]]:
    """(step, value) of the last steps at which a metric was measured, all of one stage."""
    for lines in reversed(run.stages):
        values = [(line["step"], value) for line in lines if (value := number_of(line, metric)) is not None]
        if values:
            return values[-LAST_STEPS:]
    return []


def mean_of(run: RunData, metric: str, values: Sequence[tuple[int, float]]) -> ShownNumber | None:
    """The mean of a metric's (step, value) pairs."""
    if not values:
        return None
    source = f"{_file(run)}: {metric}, mean of steps {values[0][0]} to {values[-1][0]}"
    return shown(fmean(value for _, value in values), metric, source)


def median_of(run: RunData, metric: str) -> ShownNumber | None:
    """The median over all steps."""
    values = [value for _, value in run.values(metric)]
    return shown(median(values), metric, f"{_file(run)}: {metric}, median of all steps") if values else None


def summed(run: RunData, metric: str) -> ShownNumber | None:
    """The sum over all steps."""
    values = [value for _, value in run.values(metric)]
    return shown(sum(values), metric, f"{_file(run)}: {metric}, sum of all steps") if values else None


def shown(value: float, metric: str, source: str) -> ShownNumber:
    """A number in the unit of its metric."""
    return ShownNumber(value, number_text(value, find_field(metric).unit), source)


def number_text(value: float, unit: str) -> str:
    """A number for people: shares in percent, seconds as hours where there are many."""
    if unit == "share":
        return f"{value:.1%}"
    if unit == "bytes":
        name, size = next(((name, size) for name, size in _UNITS if value >= size), _UNITS[-1])
        return f"{value / size:.1f} {name}"
    if unit == "s":
        return f"{value / 3600:,.1f} h" if value >= 7200 else f"{value:,.1f} s" if value >= 10 else f"{value:.3g} s"
    if abs(value) >= 1e15:
        return f"{value:.4g}"
    if float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def plural(count: int, what: str) -> str:
    """A word in the number that a count asks for: "spike" for 1, "spikes" for others."""
    return what if count == 1 else f"{what}s"


def counted(count: int, what: str) -> str:
    """A count in words: "1 spike", "2 spikes"."""
    return f"{count:,} {plural(count, what)}"


def _file(run: RunData) -> str:
    return f"{run.name}/metrics.jsonl"
