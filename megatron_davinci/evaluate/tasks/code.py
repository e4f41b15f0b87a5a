"""HumanEval (Chen et al., 2021) and HumanEval+ (Liu et al., 2023): functions to complete, run against tests."""

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from megatron_davinci.evaluate.tasks.code_runs import CodeVerdict
from megatron_davinci.evaluate.tasks.task import (
    Answered,
    AnswerScore,
    AnswerText,
    BenchmarkTask,
    Question,
    ScoringTools,
)

_FENCED = re.compile(r"^[ \t]*(?:```|~~~)[^\n]*\n(.*?)(?:^[ \t]*(?:```|~~~)|\Z)", re.DOTALL | re.MULTILINE)


class HumanEval(BenchmarkTask):
    """Each solution runs against the benchmark's own `check`, in a sandbox of its own."""

    name = "humaneval"
    title = "HumanEval"
    files: ClassVar[Sequence[str]] = (
        "humaneval/HumanEval.jsonl.gz",
        "humaneval/HumanEval.jsonl",
        "humaneval/**/test-*.parquet",
    )
    count = 164
    licence = "MIT"
    download = "hf download openai/openai_humaneval --repo-type dataset --local-dir DATA/humaneval"
    id_field = "task_id"
    fields: ClassVar[Sequence[str]] = ("task_id", "prompt", "canonical_solution", "test", "entry_point")
    runs_code = True

    def scores(self, pairs: Sequence[Answered], tools: ScoringTools) -> Iterator[AnswerScore]:
        """See `BenchmarkTask`."""
        programs = [self.program(question, answer, tools.chat) for question, answer in pairs]
        cases = [self.case(question, program) for (question, _), program in zip(pairs, programs, strict=True)]
        for program, verdict in zip(programs, tools.code.verdicts(cases, tools.on_score), strict=True):
            yield _score(verdict, program)

    def broken(self, questions: Sequence[Question], tools: ScoringTools) -> dict[str, str]:
        """See `BenchmarkTask`."""
        cases = [self.case(each, each.row["prompt"] + each.row["canonical_solution"]) for each in questions]
        verdicts = tools.code.verdicts(cases, lambda count: None)
        named = zip(questions, verdicts, strict=True)
        return {each.id: f"{verdict.status}: {verdict.reason}" for each, verdict in named if verdict.status != "right"}

    def program(self, question: Question, answer: AnswerText, chat: bool) -> str:
        """What is run: the prompt with its continuation; of a chat the code block that defines the function, behind the
        prompt's own imports and helpers."""
        prompt: str = question.row["prompt"]
        if not chat:
            return self.prompt(question) + answer.text
        text, name = answer.text.replace("\r\n", "\n"), re.escape(question.row["entry_point"])
        defines = re.compile(rf"^[ \t]*def {name}\s*\(", re.MULTILINE)
        blocks = [block for block in _FENCED.findall(text) if defines.search(block)]
        return f"{defines.split(prompt)[0]}\n{textwrap.dedent(blocks[-1]) if blocks else text}"

    def case(self, question: Question, program: str) -> dict[str, Any]:
        """For `CodeRuns`."""
        row = question.row
        return {"program": program, **{name: row[name] for name in ("prompt", "test", "entry_point")}}


class HumanEvalPlus(HumanEval):
    """Each solution runs beside the reference, on the inputs of HumanEval and some 750 more; plain data is compared."""

    name = "humaneval_plus"
    title = "HumanEval+"
    files = ("humanevalplus/HumanEvalPlus.jsonl.gz", "humanevalplus/HumanEvalPlus*.jsonl*")
    licence = "Apache-2.0"
    download = "fetch HumanEvalPlus.jsonl.gz of github.com/evalplus/humanevalplus_release into DATA/humanevalplus"
    fields = ("task_id", "prompt", "canonical_solution", "entry_point")
    inherits_exclusions_of = "humaneval"

    def check_row(self, row: Mapping[str, Any]) -> str:
        """See `BenchmarkTask`."""
        lists = all(isinstance(row.get(name), list) for name in ("base_input", "plus_input"))
        return super().check_row(row) or ("" if lists else "it has no lists base_input and plus_input")

    def case(self, question: Question, program: str) -> dict[str, Any]:
        """See `HumanEval`."""
        row = question.row
        return {
            "program": program,
            "reference": row["prompt"] + row["canonical_solution"],
            "inputs": row["base_input"] + row["plus_input"],
            "entry_point": row["entry_point"],
            "atol": row.get("atol") or 0,
            "polynomial": row["entry_point"] == "find_zero",  # of which any root is right
        }


def _score(verdict: CodeVerdict, program: str) -> AnswerScore:
    if verdict.status == "reference":
        return AnswerScore("unjudged", program, f"the benchmark's own solution fails: {verdict.reason}")
    return AnswerScore(verdict.status, program, verdict.reason)
