"""What a step was trained on, to read: texts, truth, and what each response was worth. Torch-free.

RUN/scored_rollouts/step_NNNNNNN.jsonl.zst, numbered as in metrics.jsonl, for each step that learns from rollouts. A
header {"format": 1, "step": N, "stage": name}, then a line for each prompt, the fields of `ScoredPrompt`. Texts are
decoded for people: bytes that are no UTF-8 become U+FFFD. The ids lie in the files of `rollout_files`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from data_prep import InputError
from data_prep.io.files import jsonl_writer, read_jsonl
from megatron_davinci.data.batches import StageBatches
from megatron_davinci.rl.answers import CLOSE, read_response
from megatron_davinci.rl.difficulty import NONE
from megatron_davinci.rl.grading import LEVEL_NAMES, Score, ScoredGroup
from megatron_davinci.rl.prompt_source import DocumentPrompts, PromptSource
from megatron_davinci.rl.rollout_files import Response, rollout_file
from megatron_davinci.rl.token_bytes import TokenBytes

SCORED_FORMAT = 1
_BEFORE, _AFTER = 200, 40  # tokens of the document that are shown around the position


@dataclass(frozen=True)
class ScoredResponse:
    """`text` of a response; `answer`: what was graded; the parts of its `reward` (Eq. 5), and its advantage (Eq. 6).

    `tokens` and `thought_tokens` are counts; not `finished`: cut off at max_tokens.
    """

    text: str
    answer: str | None
    finished: bool
    tokens: int
    thought_tokens: int
    correct: bool
    length_reward: float
    reward: float
    advantage: float

    @property
    def thought(self) -> str:
        """What stands before </think>: all of it where there is none."""
        return self.text.partition(CLOSE.decode())[0]


@dataclass(frozen=True)
class ScoredPrompt:
    """A prompt: the end of the text `before` it, the `truth`, None where nobody knows it, and the text `after`.

    `document` is the number in its `corpus`; `level` is None where prompts have none, `budget` 0.
    """

    corpus: str
    document: int
    epoch: int
    position: int
    level: str | None
    budget: int
    before: str
    truth: str | None
    after: str
    responses: Sequence[ScoredResponse]


_PROMPT = TypeAdapter(ScoredPrompt)


def scored_directory(run: Path) -> Path:
    """Where a run's scored rollouts lie."""
    return run / "scored_rollouts"


def scored_steps(run: Path) -> list[int]:
    """The steps, as metrics.jsonl counts them, whose scored rollouts a run has, ascending."""
    names = (path.name for path in scored_directory(run).glob("step_*.jsonl.zst"))
    return sorted(int(number) for name in names if (number := name[len("step_") :].partition(".")[0]).isdecimal())


def write_scored(run: Path, step: int, stage: StageBatches, prompts: Iterable[ScoredPrompt]) -> None:
    """Write the file of one step, which appears by rename."""
    with jsonl_writer(rollout_file(scored_directory(run), step)) as writer:
        writer.write({"format": SCORED_FORMAT, "step": step, "stage": stage.name})
        for prompt in prompts:
            writer.write(asdict(prompt))


def read_scored(run: Path, step: int) -> list[ScoredPrompt]:
    """The prompts of one step. Raises InputError where a run has none of it, or the file is none of these."""
    path = rollout_file(scored_directory(run), step)
    if not path.is_file():
        known = scored_steps(run)
        has = f"it has those of steps {known[0]} to {known[-1]}" if known else "it has none"
        raise InputError(f"{run} has no scored rollouts of step {step}: {has}; name a run of objective rmt or grpo")
    lines = read_jsonl(path)
    if next(lines, {}).get("format") != SCORED_FORMAT:
        raise InputError(f"{path} does not begin with a header of scored rollouts (format {SCORED_FORMAT}): remove it")
    return [_prompt(path, number, line) for number, line in enumerate(lines, 2)]


def describe_prompts(
    document: DocumentPrompts,
    groups: Sequence[ScoredGroup],
    stage: StageBatches,
    source: PromptSource[Any],
    texts: TokenBytes,
) -> Iterator[ScoredPrompt]:
    """The prompts about one document, each with its scored responses."""
    _, number = stage.documents.place_of(document.span.document)
    corpus = stage.corpus_names[stage.documents.prefix_index(document.span.document)]
    for spec, scored in zip(document.specs, groups, strict=True):
        at = spec.position
        yield ScoredPrompt(
            corpus=corpus,
            document=number,
            epoch=spec.epoch,
            position=at,
            level=None if spec.level == NONE else LEVEL_NAMES[spec.level],
            budget=spec.budget,
            before=_text(texts, document.ids[max(0, at - _BEFORE) : at].tolist()),
            truth=source.truth(document, spec),
            after=_text(texts, document.ids[at : at + _AFTER].tolist()),
            responses=[
                _response(texts, *each)
                for each in zip(scored.group.responses, scored.scores, scored.advantages, strict=True)
            ],
        )


def _response(texts: TokenBytes, response: Response, score: Score, advantage: float) -> ScoredResponse:
    tokens = texts.of(response.tokens)
    answer = read_response(tokens).answer
    return ScoredResponse(
        text=b"".join(tokens).decode(errors="replace"),
        answer=None if answer is None else answer.decode(errors="replace"),
        finished=response.finished,
        tokens=len(response.tokens),
        thought_tokens=score.thought_tokens,
        correct=score.correct,
        length_reward=score.length_reward,
        reward=score.reward,
        advantage=advantage,
    )


def _text(texts: TokenBytes, ids: Sequence[int]) -> str:
    return b"".join(texts.of(ids)).decode(errors="replace")


def _prompt(path: Path, number: int, line: dict[str, Any]) -> ScoredPrompt:
    try:
        return _PROMPT.validate_python(line)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{path}, line {number}, is no scored prompt ({where}: {first['msg']}): remove the file"
        ) from None
