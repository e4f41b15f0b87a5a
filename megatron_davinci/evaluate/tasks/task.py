"""What a benchmark is: where its questions lie, how they are put, how answers are scored.

A new one is a subclass of `BenchmarkTask`, a settings file, and a row in `registry.py`, or `register` from outside.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from megatron_davinci.evaluate.tasks.code_runs import CodeRuns
from megatron_davinci.evaluate.tasks.settings import TaskSettings, fill

ScoreStatus = Literal["right", "wrong", "unparsed", "timeout", "error", "no_room", "unjudged"]
"""unparsed: no final answer was found. error: a program raised. no_room: the prompt leaves the model no room to answer.
unjudged: the grader could not say, for a reason that is not the answer's; it is left out of the share."""


@dataclass(frozen=True)
class Question:
    """One question. `file` and `id_in_file`: where `davinci data decontaminate` finds it, by which its leakage is
    known; `row` is the benchmark's own."""

    id: str
    row: Mapping[str, Any]
    file: str
    id_in_file: str


@dataclass(frozen=True)
class AnswerText:
    """What a model wrote, up to the first stop string. `finish`: stop, length, or no_room where it was not asked."""

    text: str
    finish: str
    sample: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class AnswerScore:
    """What an answer is worth. `parsed`: the final answer that was read; `others`: verdicts by other rules."""

    status: ScoreStatus
    parsed: str = ""
    reason: str = ""
    others: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoringTools:
    """What scoring may use. `on_score` is called for each answer. `chat`: answers are of a chat, not continuations."""

    code: CodeRuns
    chat: bool = False
    on_score: Callable[[int], None] = lambda count: None


Answered = tuple[Question, AnswerText]


class BenchmarkTask(ABC):
    """`files`: patterns below the data directory, of which the first that is there is read, or all where `all_files`.
    `count`: of its instances as published. `download`: the command that fetches it."""

    name: ClassVar[str]
    title: ClassVar[str]
    files: ClassVar[Sequence[str]]
    all_files: ClassVar[bool] = False
    leaves_out: ClassVar[str] = ""
    """A pattern of names of files that are none of the questions."""
    count: ClassVar[int]
    licence: ClassVar[str]
    download: ClassVar[str]
    id_field: ClassVar[str | None] = None
    fields: ClassVar[Sequence[str]]
    """Texts that every row must have."""
    inherits_exclusions_of: ClassVar[str | None] = None
    may_be_shown: ClassVar[bool] = True
    """Whether its texts may stand in pages, which others may publish."""
    runs_code: ClassVar[bool] = False
    settings_file: ClassVar[Path | None] = None
    """The settings of a task from outside; this project's own lie in `settings_files`."""
    grouped_by: ClassVar[str | None] = None
    """A field of rows by whose values shares are given too."""

    def __init__(self) -> None:
        self.settings = (
            TaskSettings.of(self.name) if self.settings_file is None else TaskSettings.read(self.settings_file)
        )

    def prompt(self, question: Question) -> str:
        """What is continued: worked examples, then the question; no space at its end, which tokenizers dislike."""
        return self.settings.prompt_of(self.values(question)).rstrip()

    def message(self, question: Question) -> str:
        """What is asked in a chat."""
        return fill(self.settings.message, self.values(question)).strip()

    def values(self, question: Question) -> Mapping[str, str]:
        """What stands for {names} in the settings' texts."""
        return {name: str(value) for name, value in question.row.items() if isinstance(value, str)}

    def check_row(self, row: Mapping[str, Any]) -> str:
        """Why a row cannot be asked, "" where it can."""
        missing = [name for name in self.fields if not isinstance(row.get(name), str)]
        return f"it has no text under {missing[0]}" if missing else ""

    @abstractmethod
    def scores(self, pairs: Sequence[Answered], tools: ScoringTools) -> Iterator[AnswerScore]:
        """The score of each answer, in order; never of one whose finish is no_room."""

    def broken(self, questions: Sequence[Question], tools: ScoringTools) -> dict[str, str]:
        """Instances whose own solution does not pass here -> why."""
        return {}
