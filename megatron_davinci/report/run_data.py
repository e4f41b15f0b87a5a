"""What the files of one run say, as a report needs it. Torch-free."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import BaseModel

from data_prep import InputError
from data_prep.io.files import shortest_names
from megatron_davinci.report.blocks import Axis, ChartCurve
from megatron_davinci.report.metrics_file import read_lines, read_metrics
from megatron_davinci.report.starts_file import Start, read_starts

MOST_POINTS = 1000  # of a curve: more cannot be told apart on a screen


class HeldOutLosses(BaseModel):
    """A line of evaluation.jsonl: held-out loss in nats by corpus, None where it was not finite."""

    step: int
    losses: dict[str, float | None]


class Answer(BaseModel):
    """A line of answers.jsonl: what the model of a checkpoint says to prompt number `prompt`."""

    step: int
    prompt: int
    where: str
    before: str
    truth: str | None
    text: str


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
        steps = _checked(directory / "metrics.jsonl")
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
        """Steps that the recipe asks for, where the run has written them down."""
        return self.starts[-1].num_steps if self.starts else None

    def values(self, metric: str, corpus: str | None = None) -> list[tuple[int, float]]:
        """(step, value) wherever a metric was measured, or the part of it that is of one corpus."""
        found = ((line["step"], number_of(line, metric, corpus)) for line in self.steps)
        return [(step, value) for step, value in found if value is not None]

    def metrics(self) -> list[str]:
        """The names of all fields, in the order in which they came up."""
        return list(dict.fromkeys(name for line in self.steps for name in line if name not in ("step", "stage")))

    def corpora(self, metric: str) -> list[str]:
        """The corpora for which a metric was measured."""
        return list(dict.fromkeys(name for line in self.steps for name in line.get(metric) or {}))

    @cached_property
    def buckets(self) -> list[range]:
        """Steps, as places in `steps`, that one point of a curve stands for."""
        width = -(-len(self.steps) // MOST_POINTS)
        return [range(at, min(at + width, len(self.steps))) for at in range(0, len(self.steps), width)]

    @cached_property
    def axis(self) -> Axis:
        """The last step of each bucket, and what had been consumed and spent by then."""
        ends = [self.steps[bucket[-1]] for bucket in self.buckets]
        hours = list(accumulate((line.get("seconds") or 0.0) / 3600 for line in self.steps))
        return Axis(
            step=[line["step"] for line in ends],
            tokens=[line.get("consumed_tokens") for line in ends],
            hours=[round(hours[bucket[-1]], 6) for bucket in self.buckets],
        )

    def curve(self, metric: str, label: str, corpus: str | None = None) -> ChartCurve:
        """A metric over the run."""
        known = [
            [v for at in bucket if (v := number_of(self.steps[at], metric, corpus)) is not None]
            for bucket in self.buckets
        ]
        if len(self.buckets) == len(self.steps):
            return ChartCurve(label, self.axis, [values[0] if values else None for values in known])
        return ChartCurve(
            label,
            self.axis,
            [float(f"{fmean(values):.7g}") if values else None for values in known],
            _each(known, min),
            _each(known, max),
        )

    def axis_at(self, steps: Sequence[int]) -> Axis:
        """An axis of its own for what was measured after some steps alone."""
        hours = list(accumulate((line.get("seconds") or 0.0) / 3600 for line in self.steps))
        lines = {line["step"]: (line, spent) for line, spent in zip(self.steps, hours, strict=True)}
        places = [lines.get(step, ({}, None)) for step in steps]
        return Axis(
            step=list(steps),
            tokens=[line.get("consumed_tokens") for line, _ in places],
            hours=[None if spent is None else round(spent, 6) for _, spent in places],
        )


def read_runs(directories: Sequence[Path]) -> list[RunData]:
    """Several runs, each under a name that no other has. Raises InputError."""
    names = shortest_names(directories)
    return [RunData.read(directory, names[directory.resolve()]) for directory in directories]


def number_of(line: dict[str, Any], metric: str, corpus: str | None = None) -> float | None:
    """The number that a line has for a metric; None where it has none, or one that was not finite."""
    value = line.get(metric)
    if corpus is not None:
        value = value.get(corpus) if isinstance(value, dict) else None
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def is_run(directory: Path) -> bool:
    """Whether a directory is that of a run that has begun."""
    return (directory / "metrics.jsonl").is_file()


def _each(known: Sequence[list[float]], of: Callable[[list[float]], float]) -> list[float | None]:
    return [of(values) if values else None for values in known]


def _checked(path: Path) -> list[dict[str, Any]]:
    lines = read_metrics(path)
    for number, _ in _wrong(lines):
        raise InputError(f"{path}, line {number}, is no object with a step: remove the line")
    return lines


def _wrong(lines: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines, 1):
        if not isinstance(line, dict) or type(line.get("step")) is not int or line["step"] < 0:
            yield number, line
