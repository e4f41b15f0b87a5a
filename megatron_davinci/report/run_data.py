"""What the files of one run say, as a report needs it. Torch-free."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import BaseModel

from data_prep import InputError
from data_prep.io.files import shortest_names
from megatron_davinci.report.blocks import Axis, ChartCurve
from megatron_davinci.report.metrics_file import read_lines, read_metrics
from megatron_davinci.report.starts_file import Start, read_starts

_TOO_LARGE = 1e300  # sums of numbers near to infinity have none
MOST_POINTS = 1000  # of a curve: more cannot be told apart on a screen


class HeldOutLosses(BaseModel):
    """A line of evaluation.jsonl: held-out loss in nats by corpus, None where it was not finite."""

    step: int
    losses: dict[str, float | None]


class Answer(BaseModel):
    """A line of answers.jsonl: what the model of a checkpoint says to prompt number `prompt` of a stage.

    Not `finished`: cut off at report.max_tokens.
    """

    step: int
    stage: str
    prompt: int
    where: str
    before: str
    truth: str | None
    text: str
    finished: bool


@dataclass(frozen=True)
class RunData:
    """Lines of metrics.jsonl (`steps`) and the other files of a directory, which a page calls `name`."""

    directory: Path
    name: str
    steps: Sequence[dict[str, Any]]
    evaluations: Sequence[HeldOutLosses]
    starts: Sequence[Start]
    answers: Sequence[Answer]

    @classmethod
    def read(cls, directory: Path, name: str | None = None) -> "RunData":
        """Raises InputError where a directory holds no run, or a file of it is damaged."""
        steps = _rising(directory / "metrics.jsonl")
        if not steps:
            raise InputError(f"{directory} has no step in metrics.jsonl: name the directory of a run that has begun")
        return cls(
            directory=directory,
            name=name or directory.resolve().name,
            steps=steps,
            evaluations=read_lines(directory / "evaluation.jsonl", HeldOutLosses),
            starts=read_starts(directory),
            answers=read_lines(directory / "answers.jsonl", Answer),
        )

    @property
    def learns_from_rollouts(self) -> bool:
        """Whether any step was of an objective with rewards."""
        return any("reward" in line for line in self.steps)

    @property
    def num_steps(self) -> int | None:
        """Optimizer steps of the recipe; None where the run has no starts.jsonl."""
        return self.starts[-1].num_steps if self.starts else None

    @property
    def stages(self) -> list[list[dict[str, Any]]]:
        """The lines of each stage, in the order in which they were trained."""
        return [list(lines) for _, lines in groupby(self.steps, key=lambda line: line.get("stage"))]

    def values(self, metric: str, corpus: str | None = None) -> list[tuple[int, float]]:
        """(step, value) wherever a metric was measured, or the part of it that is of one corpus."""
        found = ((line["step"], number_of(line, metric, corpus)) for line in self.steps)
        return [(step, value) for step, value in found if value is not None]

    def metrics(self) -> list[str]:
        """The names of all fields, in the order in which they came up."""
        return list(dict.fromkeys(name for line in self.steps for name in line if name not in ("step", "stage")))

    def corpora(self, metric: str) -> list[str]:
        """The corpora for which a metric was measured."""
        known = (line.get(metric) for line in self.steps)
        return list(dict.fromkeys(name for each in known if isinstance(each, dict) for name in each))

    @cached_property
    def buckets(self) -> list[range]:
        """Steps, as places in `steps`, that one point of a curve stands for."""
        width = -(-len(self.steps) // MOST_POINTS)
        return [range(at, min(at + width, len(self.steps))) for at in range(0, len(self.steps), width)]

    @cached_property
    def axis(self) -> Axis:
        """The last step of each bucket, and what had been consumed and spent by then."""
        ends = [self.steps[bucket[-1]] for bucket in self.buckets]
        return Axis(
            step=[line["step"] for line in ends],
            tokens=[number_of(line, "consumed_tokens") for line in ends],
            hours=[round(self.hours[bucket[-1]], 6) for bucket in self.buckets],
        )

    @cached_property
    def hours(self) -> list[float]:
        """Hours in steps, up to each of them."""
        return list(accumulate((number_of(line, "seconds") or 0.0) / 3600 for line in self.steps))

    def curve(self, metric: str, label: str, corpus: str | None = None) -> ChartCurve:
        """A metric over the run."""
        known = self.by_bucket([number_of(line, metric, corpus) for line in self.steps])
        if len(self.buckets) == len(self.steps):
            return ChartCurve(label, self.axis, _each(known, fmean))
        return ChartCurve(label, self.axis, _each(known, _mean), _each(known, min), _each(known, max))

    def mean_curve(self, values: Sequence[float | None], label: str, dashed: bool = False) -> ChartCurve:
        """Numbers (steps,) that are worked out from a run, drawn over it."""
        return ChartCurve(label, self.axis, _each(self.by_bucket(values), _mean), dashed=dashed)

    def by_bucket(self, values: Sequence[float | None]) -> list[list[float]]:
        """Numbers (steps,), those of each bucket together."""
        return [[value for at in bucket if (value := values[at]) is not None] for bucket in self.buckets]

    def axis_at(self, steps: Sequence[int]) -> Axis:
        """An axis of its own for what was measured after some steps alone."""
        lines = {line["step"]: (line, spent) for line, spent in zip(self.steps, self.hours, strict=True)}
        nothing: tuple[dict[str, Any], float | None] = ({}, None)
        places = [lines.get(step, nothing) for step in steps]
        return Axis(
            step=list(steps),
            tokens=[number_of(line, "consumed_tokens") for line, _ in places],
            hours=[None if spent is None else round(spent, 6) for _, spent in places],
        )


def read_runs(directories: Sequence[Path]) -> list[RunData]:
    """Several runs, each under a name that no other has. Raises InputError, also where one is given twice."""
    names = shortest_names(directories)
    if len(names) < len(directories):
        raise InputError(f"{', '.join(map(str, directories))}: one of them is given twice; name each run once")
    return [RunData.read(directory, names[directory.resolve()]) for directory in directories]


def number_of(line: dict[str, Any], metric: str, corpus: str | None = None) -> float | None:
    """The number that a line has for a metric; None where it has none, or one that was not finite."""
    value = line.get(metric)
    if corpus is not None:
        value = value.get(corpus) if isinstance(value, dict) else None
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _TOO_LARGE
    return value if is_number else None


def is_run(directory: Path) -> bool:
    """Whether a directory is that of a run that has begun."""
    return (directory / "metrics.jsonl").is_file()


def _each(known: Sequence[list[float]], of: Callable[[list[float]], float]) -> list[float | None]:
    return [of(values) if values else None for values in known]


def _mean(values: list[float]) -> float:
    """Seven digits are more than a picture shows, and half of what a page would weigh."""
    return float(f"{fmean(values):.7g}")


def _rising(path: Path) -> list[dict[str, Any]]:
    lines = read_metrics(path)
    for number, (before, line) in enumerate(pairwise(lines), 2):
        if line["step"] <= before["step"]:
            raise InputError(
                f"{path}, line {number}: step {line['step']} comes after step {before['step']}, and steps must rise: "
                "remove the line"
            )
    return lines
