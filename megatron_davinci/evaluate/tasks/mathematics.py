"""GSM8K (Cobbe et al., 2021), MATH-500 (Hendrycks et al., 2021) and Omni-MATH (Gao et al., 2024), by a grader."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from megatron_davinci.evaluate.tasks.reading import (
    first_number,
    last_number,
    plain_number,
    stated_answer,
    stated_places,
)
from megatron_davinci.evaluate.tasks.task import Answered, AnswerScore, BenchmarkTask, Question, ScoringTools
from megatron_davinci.rl.math_grader import are_equal

_AT_ONCE = 256
_STRICT = re.compile(r"The answer is (-?[0-9.,]+)")
_FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
_IGNORED = re.compile(r",|\$|\.$")


class _Mathematics(BenchmarkTask):
    def truth(self, question: Question) -> str:
        """The answer that is right."""
        return str(question.row["answer"])

    def read(self, text: str) -> str:
        """The final answer in what a model wrote, "" where there is none."""
        return stated_answer(text)

    def others(self, text: str, truth: str) -> dict[str, bool]:
        """Verdicts by other rules."""
        return {}

    def scores(self, pairs: Sequence[Answered], tools: ScoringTools) -> Iterator[AnswerScore]:
        """See `BenchmarkTask`. Numbers are compared as numbers, all else as math-verify sees it."""
        for at in range(0, len(pairs), _AT_ONCE):
            chunk = pairs[at : at + _AT_ONCE]
            read = [(self.truth(question), self.read(answer.text)) for question, answer in chunk]
            verdicts = are_equal([pair for pair in read if pair[1] and _as_numbers(*pair) is None])
            for (_, answer), (truth, found) in zip(chunk, read, strict=True):
                others = self.others(answer.text, truth)
                if not found:
                    yield AnswerScore("unparsed", others=others)
                    continue
                same = _as_numbers(truth, found)
                same = verdicts[truth, found] if same is None else same
                yield AnswerScore("unjudged" if same is None else "right" if same else "wrong", found, others=others)
            tools.on_score(len(chunk))


def _as_numbers(truth: str, answer: str) -> bool | None:
    """Whether two numbers are the same; None where they are not both plain numbers."""
    wanted, found = plain_number(truth), plain_number(answer)
    return None if wanted is None or found is None else wanted == found


class Gsm8k(_Mathematics):
    """Beside the grader's verdict stand lm-eval's strict match ("The answer is N") and flexible match (last number)."""

    name = "gsm8k"
    title = "GSM8K"
    files = ("gsm8k/test.jsonl", "gsm8k/main/test-*.parquet", "gsm8k/**/test-*.parquet")
    count = 1319
    licence = "MIT"
    download = "hf download openai/gsm8k --repo-type dataset --local-dir DATA/gsm8k"
    fields = ("question", "answer")

    def check_row(self, row: Mapping[str, Any]) -> str:
        """See `BenchmarkTask`."""
        missing = super().check_row(row)
        return missing or ("" if plain_number(_behind_mark(row)) is not None else "no number stands behind ####")

    def truth(self, question: Question) -> str:
        """What stands behind ####."""
        return _behind_mark(question.row)

    def read(self, text: str) -> str:
        """The first number of what is stated, or the formula; where nothing is stated, the last number of all."""
        stated = max(stated_places(text), default=(0, ""))[1].rpartition("=")[2]
        return (stated if "\\" in stated else first_number(stated)) or last_number(text)

    def others(self, text: str, truth: str) -> dict[str, bool]:
        """See `_Mathematics`."""
        strict, flexible = _STRICT.search(text), _FLEXIBLE.findall(text)
        found = {"strict": strict[1] if strict else "", "flexible": flexible[-1] if flexible else ""}
        return {name: _IGNORED.sub("", each.strip()) == _IGNORED.sub("", truth) for name, each in found.items()}


def _behind_mark(row: Mapping[str, Any]) -> str:
    return str(row["answer"]).rpartition("####")[2].strip()


class Math500(_Mathematics):
    """500 problems of MATH's test split."""

    name = "math500"
    title = "MATH-500"
    files = ("math500/math500_test.jsonl", "math500/test.jsonl", "math500/**/test-*.parquet")
    count = 500
    licence = "MIT (MATH)"
    download = "hf download HuggingFaceH4/MATH-500 --repo-type dataset --local-dir DATA/math500"
    id_field = "unique_id"
    fields = ("problem", "answer", "unique_id")


class OmniMath(_Mathematics):
    """Problems of Olympiads: those of Omni-MATH whose answers rules can judge."""

    name = "omni_math"
    title = "Omni-MATH-Rule"
    files = ("omni_math_rule/omni_math_rule.jsonl",)
    count = 2821
    licence = "Apache-2.0 (Omni-MATH); none is stated for the selection"
    download = "fetch omni_math_rule.jsonl of github.com/KbsdJames/omni-math-rule into DATA/omni_math_rule"
    fields = ("problem", "answer")

    def values(self, question: Question) -> dict[str, Any]:
        """See `BenchmarkTask`."""
        return {"problem": question.row["problem"]}
