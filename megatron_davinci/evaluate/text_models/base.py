"""The protocol of models that answer texts, and how a model is named on the command line."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from megatron_davinci.evaluate.tasks.task import AnswerText


@dataclass(frozen=True)
class TextRequest:
    """What is asked: a text to go on with, or in a `chat` one message. `stop`: strings, the first of which ends the
    answer and is no part of it. `temperature` 0: the likeliest token each time; else `seed` says which sample."""

    text: str
    chat: bool
    max_tokens: int
    stop: tuple[str, ...]
    temperature: float
    seed: int


OnAnswer = Callable[[int, AnswerText], None]
"""Called with the number of a request and its answer, in any order, by one thread at a time."""


class AnswersTexts(Protocol):
    """A model."""

    def answer(self, requests: Sequence[TextRequest], on_answer: OnAnswer) -> None:
        """Answer all requests. One whose prompt leaves no room for max_tokens gets an answer with finish no_room.
        Raises InputError and WorkFailed."""

    def close(self) -> None:
        """Give back memory, processes and connections."""


def cut_at_stop(text: str, finish: str, stop: Sequence[str]) -> tuple[str, str]:
    """A text up to the first of the stop strings, and how it ended then: stop, or as before where there is none."""
    places = [place for place in (text.find(each) for each in stop) if place >= 0]
    return (text[: min(places)], "stop") if places else (text, finish)
