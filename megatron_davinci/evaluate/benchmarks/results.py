"""The figures of a model on a task: on all questions, the clean, the contaminated, those too short to tell."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from megatron_davinci.evaluate.benchmarks.answers import AskedQuestion, SamplingOptions
from megatron_davinci.evaluate.benchmarks.exclusions import LeakageState
from megatron_davinci.evaluate.benchmarks.statistics import bootstrap_interval, paired_difference
from megatron_davinci.evaluate.tables import wilson_interval
from megatron_davinci.evaluate.tasks.data import TaskData
from megatron_davinci.evaluate.tasks.task import AnswerScore, AnswerText

ALL = "all"
STATES: tuple[LeakageState, ...] = ("clean", "contaminated", "too_short")


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer with its score; `leakage`: the state of its question, None where nobody has looked."""

    asked: AskedQuestion
    answer: AnswerText
    score: AnswerScore
    leakage: LeakageState | None

    def as_line(self, show: bool) -> dict[str, Any]:
        """A line of OUT/scores/MODEL/TASK.jsonl. `show`: with the texts."""
        texts = {"prompt": self.asked.request.text, "answer": self.answer.text} if show else {}
        return {
            "id": self.asked.question.id,
            "sample": self.asked.sample,
            "status": self.score.status,
            "parsed": self.score.parsed if show or len(self.score.parsed) == 1 else "",
            "reason": self.score.reason,
            **({"others": dict(self.score.others)} if self.score.others else {}),
            "finish": self.answer.finish,
            "leakage": self.leakage,
            **texts,
        }


def task_results(data: TaskData, scored: Sequence[ScoredAnswer], options: SamplingOptions) -> dict[str, Any]:
    """Every row of the table, the verdicts by other rules, and means over groups where the benchmark has some."""
    rows = {ALL: row_of(scored, options)}
    if scored and scored[0].leakage is not None:
        rows |= {state: row_of([each for each in scored if each.leakage == state], options) for state in STATES}
    return {
        "title": data.task.title,
        "questions": len({each.asked.question.id for each in scored}),
        "published_questions": data.task.count,
        "left_out": list(data.left_out),
        "files": dict(data.digests),
        "settings": {"version": data.task.settings.version, "sha256": data.task.settings.digest},
        "rows": rows,
        "others": _others(scored),
        "groups": _groups(data, scored),
    }


def row_of(scored: Sequence[ScoredAnswer], options: SamplingOptions) -> dict[str, Any]:
    """Counts, share and interval: Wilson's where each question has one answer, else a bootstrap over questions.

    What the grader could not judge is in no share, and counted.
    """
    shares = list(shares_of(scored).values())
    judged = [each for each in scored if each.score.status != "unjudged"]
    right = sum(each.score.status == "right" for each in judged)
    interval = wilson_interval(right, len(judged)) if options.samples == 1 else bootstrap_interval(shares)
    statuses = Counter(each.score.status for each in scored)
    return {
        "questions": len({each.asked.question.id for each in scored}),
        "answers": len(judged),
        "right": right,
        "share": sum(shares) / len(shares) if shares else None,
        "interval_95": list(interval),
        "cut_by_length": sum(each.answer.finish == "length" for each in scored),
        **{status: statuses[status] for status in ("wrong", "timeout", "error", "unparsed", "no_room", "unjudged")},
    }


def shares_of(scored: Sequence[ScoredAnswer]) -> dict[str, float]:
    """Question -> the share of its judged answers that are right; without those of which none was judged."""
    verdicts: dict[str, list[bool]] = defaultdict(list)
    for each in scored:
        if each.score.status != "unjudged":
            verdicts[each.asked.question.id].append(each.score.status == "right")
    return {name: sum(found) / len(found) for name, found in verdicts.items()}


def compared(
    base: Sequence[ScoredAnswer], new: Sequence[ScoredAnswer], options: SamplingOptions
) -> dict[str, dict[str, Any]]:
    """The paired difference on the questions that both have judged answers to, for all and for clean ones."""
    found = {}
    for name in (ALL, "clean"):
        shares = [shares_of([each for each in side if name in (ALL, each.leakage)]) for side in (base, new)]
        common = sorted(shares[0].keys() & shares[1].keys())
        if common:
            first, second = ([side[each] for each in common] for side in shares)
            found[name] = {"questions": len(common), **asdict(paired_difference(first, second, options.samples == 1))}
    return found


def _others(scored: Sequence[ScoredAnswer]) -> dict[str, int]:
    """Right answers by other rules than the verdict's."""
    counts: Counter[str] = Counter()
    for each in scored:
        if each.score.status != "unjudged":
            counts.update({name: int(right) for name, right in each.score.others.items()})
    return dict(counts)


def _groups(data: TaskData, scored: Sequence[ScoredAnswer]) -> Mapping[str, Any]:
    """Shares by the field that a task groups by, and their plain mean."""
    field = data.task.grouped_by
    if field is None:
        return {}
    groups: dict[str, list[float]] = defaultdict(list)
    rows = {each.asked.question.id: each.asked.question.row for each in scored}
    for name, share in shares_of(scored).items():
        groups[str(rows[name].get(field)).strip()].append(share)
    means = {
        name: {"questions": len(found), "share": sum(found) / len(found)} for name, found in sorted(groups.items())
    }
    return {"field": field, "mean": sum(each["share"] for each in means.values()) / max(1, len(means)), "by": means}
