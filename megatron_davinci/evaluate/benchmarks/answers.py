"""Answers as they come, on disk: one line each, found again by what was asked of whom, so that nothing is asked twice.

OUT/answers/MODEL/TASK.jsonl. A line's key is the hash of the text that was asked, of how, and of the model's weights;
which is why answers of other settings or other weights are never taken for these.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Self

import orjson

from data_prep.io.errors import DAMAGE, InputError
from data_prep.io.files import read_json
from megatron_davinci.evaluate.tasks.task import AnswerText, BenchmarkTask, Question
from megatron_davinci.evaluate.text_models.base import TextRequest

ANSWERS_FOLDER, MODELS_FILE = "answers", "models.json"
_LARGEST_SEED = 1 << 31


@dataclass(frozen=True)
class SamplingOptions:
    """How models are asked: `samples` of each question, which at temperature 0 are one."""

    samples: int = 1
    temperature: float = 0.0
    chat: bool = False


@dataclass(frozen=True)
class AskedQuestion:
    """A request for one sample of the answers to a question, with its key."""

    question: Question
    sample: int
    request: TextRequest
    key: str


def ask_for(
    task: BenchmarkTask, question: Question, sample: int, options: SamplingOptions, weights: str
) -> AskedQuestion:
    """The request for a sample; `weights`: the model's fingerprint. It depends on nothing but these."""
    settings = task.settings
    asked: dict[str, Any] = {
        "text": task.message(question) if options.chat else task.prompt(question),
        "chat": options.chat,
        "max_tokens": settings.chat_max_tokens if options.chat else settings.max_tokens,
        "stop": () if options.chat else tuple(settings.stop),
        "temperature": options.temperature,
    }
    known = json.dumps({**asked, "sample": sample, "weights": weights}, sort_keys=True)
    digest = hashlib.sha256(known.encode())
    seed = int.from_bytes(digest.digest()[:8], "big") % _LARGEST_SEED
    return AskedQuestion(question, sample, TextRequest(**asked, seed=seed), digest.hexdigest())


def read_models(out: Path) -> dict[str, dict[str, str]]:
    """Models that have answered before: name -> what was given, and whose answers they are. Raises InputError."""
    path = out / ANSWERS_FOLDER / MODELS_FILE
    if not path.exists():
        return {}
    held = read_json(path)
    try:
        return {name: {"model": str(each["model"]), "weights": str(each["weights"])} for name, each in held.items()}
    except DAMAGE:
        raise InputError(f"{path} does not say which models have answered: name another --out") from None


class AnswerStore:
    """The answers of one model to one task. Tasks of a model share what was asked of both."""

    def __init__(self, out: Path, model: str, task: str) -> None:
        self._folder = out / ANSWERS_FOLDER / model
        self.path = self._folder / f"{task}.jsonl"
        self._known = {key: answer for path in sorted(self._folder.glob("*.jsonl")) for key, answer in _read(path)}
        self._kept = dict(_read(self.path)) if self.path.exists() else {}
        self._file: IO[bytes] | None = None

    def get(self, asked: AskedQuestion) -> AnswerText | None:
        """The answer that was given, None where none was."""
        return self._known.get(asked.key)

    def put(self, asked: AskedQuestion, answer: AnswerText) -> None:
        """Keep an answer, unless it is kept already."""
        self._known[asked.key] = answer
        if self._kept.get(asked.key) == answer:
            return
        self._kept[asked.key] = answer
        line = {"id": asked.question.id, "key": asked.key, **asdict(answer), "sample": asked.sample}
        if self._file is None:
            self._file = _opened(self.path)
        self._file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


class Asking:
    """What is still to be asked of a model, of all tasks; answers are kept as they come. What two tasks ask alike is
    asked once."""

    def __init__(self, out: Path, model: str, ask_again: bool) -> None:
        """`ask_again`: what had no room may have some now."""
        self._out, self._model, self._ask_again = out, model, ask_again
        self._stores: dict[str, AnswerStore] = {}
        self._waiting: list[list[tuple[AnswerStore, AskedQuestion]]] = []
        self._number: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for store in self._stores.values():
            store.close()

    def add(self, task: str, asked: Iterable[AskedQuestion]) -> None:
        """Add what a task asks; what is answered already is only kept with the task."""
        store = self._stores[task] = AnswerStore(self._out, self._model, task)
        for each in asked:
            known = store.get(each)
            if known is not None and (known.finish != "no_room" or not self._ask_again):
                store.put(each, known)
                continue
            number = self._number.setdefault(each.key, len(self._waiting))
            if number == len(self._waiting):
                self._waiting.append([])
            self._waiting[number].append((store, each))

    @property
    def requests(self) -> list[TextRequest]:
        """The requests, each once, in the order in which they were added."""
        return [waiting[0][1].request for waiting in self._waiting]

    def keep(self, number: int, answer: AnswerText) -> None:
        """Keep the answer to a request, by its number in `requests`."""
        for store, asked in self._waiting[number]:
            store.put(asked, replace(answer, sample=asked.sample))


def _opened(path: Path) -> IO[bytes]:
    """The file to append to, without a last line that a killed command has left in part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab+")
    size = file.tell()
    file.seek(0)
    whole = file.read().rfind(b"\n") + 1
    if whole < size:
        file.truncate(whole)
    return file


def _read(path: Path) -> Iterator[tuple[str, AnswerText]]:
    with path.open("rb") as file:
        for line in file:
            with suppress(*DAMAGE):  # the last one may be cut off; what is damaged is asked again
                held: Mapping[str, Any] = orjson.loads(line)
                answer = AnswerText(**{name: held[name] for name in AnswerText.__dataclass_fields__})
                if isinstance(answer.text, str) and answer.finish in ("stop", "length", "no_room"):
                    yield str(held["key"]), answer
