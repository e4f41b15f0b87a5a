"""The mathematical grader against answers that were labelled by reading: python benchmarks/math_labels.py DATA OUT.md

DATA holds gsm8k/, math500/ and omni_math_rule/. Two sets: 300 answers at whose disagreements the reader of answers was
mended, and 100 that were labelled afterwards, which it has not seen.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_davinci.evaluate.tasks.code_runs import CodeRuns
from megatron_davinci.evaluate.tasks.data import TaskData
from megatron_davinci.evaluate.tasks.registry import named_tasks
from megatron_davinci.evaluate.tasks.task import AnswerScore, AnswerText, ScoringTools
from megatron_davinci.evaluate.text_models.base import cut_at_stop

TASKS = ("math500", "gsm8k", "omni_math")
SETS = {"300 answers": "math_labels.jsonl", "100 answers that came later": "math_labels_held_out.jsonl"}
_LABELS = Path(__file__).parents[1] / "tests" / "evaluation"

Labelled = tuple[str, Mapping[str, Any], AnswerScore]


def scored(data: Path, file: str) -> Iterator[Labelled]:
    """Task, label and score of every answer of a set, cut at the task's stop strings as answers are."""
    labels = [json.loads(line) for line in (_LABELS / file).read_text().splitlines()]
    for task in named_tasks(",".join(TASKS)):
        own = [label for label in labels if label["task"] == task.name]
        questions = TaskData.read(task, data).questions
        pairs = [
            (questions[each["index"]], AnswerText(cut_at_stop(each["response"], "stop", task.settings.stop)[0], "stop"))
            for each in own
        ]
        scores = task.scores(pairs, ScoringTools(CodeRuns(Path())))
        yield from ((task.name, label, score) for label, score in zip(own, scores, strict=True))


def disagreements(found: list[Labelled]) -> list[Labelled]:
    """Those whose score is not what the reader said."""
    return [each for each in found if (each[2].status == "right") != each[1]["correct"]]


def page(data: Path) -> str:
    """Counts, and every disagreement."""
    lines = ["# The mathematical grader against hand-labelled answers", ""]
    for title, file in SETS.items():
        found = list(scored(data, file))
        lines += [
            f"## {title}",
            "",
            "| | agree | wrongly right | wrongly wrong | strict agrees | flexible agrees |",
            "|---|---|---|---|---|---|",
        ]
        for name in TASKS:
            own = [each for each in found if each[0] == name]
            kinds = Counter(each[2].status == "right" for each in disagreements(own))
            others = {
                rule: sum(s.others[rule] == label["correct"] for _, label, s in own if s.others)
                for rule in ("strict", "flexible")
            }
            shown = [str(count) if any(s.others for *_, s in own) else "" for count in others.values()]
            agree = f"{len(own) - kinds.total()} of {len(own)}"
            lines.append(f"| {name} | {agree} | {kinds[True]} | {kinds[False]} | {' | '.join(shown)} |")
        lines += ["", "| task | index | label | verdict | read as | what it is |", "|---|---|---|---|---|---|"]
        for name, label, score in disagreements(found):
            read = score.parsed.replace("|", "\\|").replace("\n", " ")
            right = "right" if label["correct"] else "wrong"
            lines.append(f"| {name} | {label['index']} | {right} | {score.status} | `{read}` | {label['note']} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(page(Path(sys.argv[1])))
