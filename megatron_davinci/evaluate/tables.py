"""Accuracies by difficulty as numbers and as the paper's tables. Torch-free."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_davinci.evaluate.positions import Position
from megatron_davinci.rl.difficulty import LEVEL_NAMES

_Z = 1.959963984540054  # of 95% of a normal distribution


@dataclass(frozen=True)
class Outcome:
    """What a model made of a position: predicted at once (`direct`), and after a thought (`reasoned`)."""

    position: Position
    direct: bool
    reasoned: bool
    response_tokens: int
    thought_tokens: int
    closed: bool


@dataclass(frozen=True)
class ModelOutcomes:
    """The outcomes of one model; `seconds`: to write the responses of each batch."""

    outcomes: Sequence[Outcome]
    seconds: Sequence[float]


def wilson_interval(correct: float, count: int) -> tuple[float, float]:
    """95% interval of a share (Wilson 1927): right of `count` were right; all of [0, 1] where there are none."""
    if not count:
        return 0.0, 1.0
    share, spread = correct / count, _Z * _Z / count
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def summarize_outcomes(evaluation: ModelOutcomes) -> dict[str, Any]:
    """Accuracies by difficulty with counts and intervals, their plain mean as in the paper, lengths and times."""
    outcomes = evaluation.outcomes
    closed = sum(outcome.closed for outcome in outcomes)
    return {
        "direct": _accuracies(outcomes, [outcome.direct for outcome in outcomes]),
        "reasoned": _accuracies(outcomes, [outcome.reasoned for outcome in outcomes]),
        "response_tokens": sum(outcome.response_tokens for outcome in outcomes) / len(outcomes),
        "thought_tokens": sum(outcome.thought_tokens for outcome in outcomes) / len(outcomes),
        "unclosed_fraction": 1 - closed / len(outcomes),
        "seconds_per_batch": sum(evaluation.seconds) / len(evaluation.seconds),
    }


def _accuracies(outcomes: Sequence[Outcome], correct: Sequence[bool]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for level, name in enumerate(LEVEL_NAMES):
        found[name] = accuracy_of(
            [right for outcome, right in zip(outcomes, correct, strict=True) if outcome.position.level == level]
        )
    known = [found[name]["accuracy"] for name in LEVEL_NAMES if found[name]["count"]]
    return {**found, "average": sum(known) / len(known)}


def accuracy_of(correct: Sequence[bool]) -> dict[str, Any]:
    """Count, share of right ones, None where there are none, and its 95% interval."""
    low, high = wilson_interval(sum(correct), len(correct))
    share = sum(correct) / len(correct) if correct else None
    return {"count": len(correct), "correct": sum(correct), "accuracy": share, "interval_95": [low, high]}


def accuracy_tables(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """The paper's Tables 1 and 4 (accuracy by difficulty; direct: NTP, reasoned: NTR) and Table 3 (length and time)."""
    first = next(iter(summaries.values()))["direct"]
    counts = " | ".join(f"{name.capitalize()} (n = {first[name]['count']})" for name in LEVEL_NAMES)
    lines = [
        "## Next-token accuracy, % (95% interval)",
        "",
        f"| Method | {counts} | Average |",
        "|---|---|---|---|---|",
    ]
    for kind, label in (("direct", "NTP"), ("reasoned", "NTR")):
        for name, summary in summaries.items():
            cells = " | ".join(accuracy_cell(summary[kind][level]) for level in LEVEL_NAMES)
            lines.append(f"| {name} ({label}) | {cells} | {100 * summary[kind]['average']:.2f} |")
    lines += ["", "## Length of responses, and time to write them", ""]
    lines += ["| Method | Tokens | of them thought | Unclosed, % | Seconds a batch |", "|---|---|---|---|---|"]
    for name, summary in summaries.items():
        numbers = (summary["response_tokens"], summary["thought_tokens"], 100 * summary["unclosed_fraction"])
        cells = " | ".join(f"{number:.1f}" for number in (*numbers, summary["seconds_per_batch"]))
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines) + "\n"


def accuracy_cell(accuracy: Mapping[str, Any]) -> str:
    """What `accuracy_of` gives, in percent."""
    if not accuracy["count"]:
        return "-"
    low, high = accuracy["interval_95"]
    return f"{100 * accuracy['accuracy']:.2f} ({100 * low:.1f} to {100 * high:.1f})"
