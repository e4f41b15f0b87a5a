"""GPQA (Rein et al., 2023) and SuperGPQA (M-A-P, 2025): questions with options, answered by a letter after thinking."""

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from megatron_davinci.evaluate.tasks.reading import chosen_letter
from megatron_davinci.evaluate.tasks.task import Answered, AnswerScore, BenchmarkTask, Question, ScoringTools

LETTERS = "ABCDEFGHIJ"


class _Choices(BenchmarkTask):
    @abstractmethod
    def options(self, row: Mapping[str, Any]) -> Sequence[str]:
        """The options, in the order in which they are shown."""

    @abstractmethod
    def truth(self, question: Question) -> str:
        """The text of the right option."""

    def asked(self, row: Mapping[str, Any]) -> str:
        """The question alone."""
        return str(row["question"]).strip()

    def values(self, question: Question) -> dict[str, str]:
        """See `BenchmarkTask`."""
        options = self.options(question.row)
        lines = [f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False)]
        letters = ", ".join(LETTERS[: len(options)])
        return {"question": self.asked(question.row), "options": "\n".join(lines), "letters": letters}

    def scores(self, pairs: Sequence[Answered], tools: ScoringTools) -> Iterator[AnswerScore]:
        """See `BenchmarkTask`."""
        for question, answer in pairs:
            options = self.options(question.row)
            letter = chosen_letter(answer.text, LETTERS[: len(options)])
            tools.on_score(1)
            if not letter:
                yield AnswerScore("unparsed")
            else:
                right = options[LETTERS.index(letter)] == self.truth(question)
                yield AnswerScore("right" if right else "wrong", letter)


class Gpqa(_Choices):
    """GPQA-Main. The order of a question's options comes from its record's id, so that no other record has a part in
    it; its texts are never shown, as its authors ask."""

    name = "gpqa_main"
    title = "GPQA-Main"
    files = ("gpqa/gpqa_main.csv", "gpqa/**/gpqa_main.csv")
    count = 448
    licence = "CC BY 4.0; gated, not to be published"
    download = "hf download Idavidrein/gpqa gpqa_main.csv --repo-type dataset --local-dir DATA/gpqa"
    id_field = "Record ID"
    fields = ("Record ID", "Question", "Correct Answer", *(f"Incorrect Answer {number}" for number in (1, 2, 3)))
    may_be_shown = False

    def asked(self, row: Mapping[str, Any]) -> str:
        """See `_Choices`."""
        return str(row["Question"]).strip()

    def options(self, row: Mapping[str, Any]) -> Sequence[str]:
        """See `_Choices`."""

        def place(column: str) -> bytes:
            return hashlib.sha256(f"{row['Record ID']} {column}".encode()).digest()

        columns = ("Correct Answer", *(f"Incorrect Answer {number}" for number in (1, 2, 3)))
        return [str(row[column]).strip() for column in sorted(columns, key=place)]

    def truth(self, question: Question) -> str:
        """See `_Choices`."""
        return str(question.row["Correct Answer"]).strip()


class SuperGpqa(_Choices):
    """Options as the file has them, up to ten."""

    name = "super_gpqa"
    title = "SuperGPQA"
    files = ("supergpqa/SuperGPQA-all.jsonl", "supergpqa/**/*.parquet")
    count = 26_529
    licence = "ODC-BY"
    download = "hf download m-a-p/SuperGPQA --repo-type dataset --local-dir DATA/supergpqa"
    id_field = "uuid"
    fields = ("uuid", "question", "answer_letter")
    grouped_by = "discipline"

    def check_row(self, row: Mapping[str, Any]) -> str:
        """See `BenchmarkTask`."""
        options, letter = row.get("options"), row.get("answer_letter")
        if not isinstance(options, list) or not 2 <= len(options) <= len(LETTERS):
            return f"its options are no list of 2 to {len(LETTERS)} texts"
        return super().check_row(row) or ("" if letter in set(LETTERS[: len(options)]) else "its letter is no option's")

    def options(self, row: Mapping[str, Any]) -> Sequence[str]:
        """See `_Choices`."""
        return [str(each) for each in row["options"]]

    def truth(self, question: Question) -> str:
        """See `_Choices`."""
        return self.options(question.row)[LETTERS.index(question.row["answer_letter"])]
