"""What a step was trained on, to read: texts, truth, and what each response was worth. Torch-free.

RUN/scored_rollouts/step_NNNNNNN.jsonl.zst, numbered as in metrics.jsonl, for each step that learns from rollouts. A
header {"format": 1, "step": N, "stage": name}, then a line for each prompt, the fields of `ScoredPrompt`. Texts are
decoded for people: bytes that are no UTF-8 become U+FFFD. The ids lie in the files of `rollout_files`.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
from pydantic import TypeAdapter, ValidationError

from data_prep import InputError
from data_prep.io.errors import first_mistake
from data_prep.io.files import jsonl_writer, read_jsonl
from megatron_davinci.rl.rollout_files import rollout_file

SCORED_FORMAT = 1
_FILE = re.compile(r"step_([0-9]{7,})\.jsonl\.zst")


@dataclass(frozen=True)
class ScoredResponse:
    """`text` of a response; `answer`: what was graded; the parts of its `reward` (Eq. 5), and its advantage (Eq. 6).

    `tokens` and `thought_tokens` are counts; not `finished`: cut off at max_tokens; `correct` is None where it
    could not be judged.
    """

    text: str
    answer: str | None
    finished: bool
    tokens: int
    thought_tokens: int
    correct: bool | None
    length_reward: float
    reward: float
    advantage: float


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
    directory = scored_directory(run)
    names = (_FILE.fullmatch(path.name) for path in directory.iterdir()) if directory.is_dir() else ()
    steps = sorted(int(found[1]) for found in names if found is not None)
    return [step for step in steps if rollout_file(directory, step).is_file()]


def write_scored(run: Path, step: int, stage: str, prompts: Iterable[ScoredPrompt]) -> None:
    """Write the file of one step of the stage with this name; the file appears by rename."""
    with jsonl_writer(rollout_file(scored_directory(run), step)) as writer:
        writer.write({"format": SCORED_FORMAT, "step": step, "stage": stage})
        for prompt in prompts:
            writer.write(asdict(prompt))


def read_scored(run: Path, step: int) -> list[ScoredPrompt]:
    """The prompts of one step. Raises InputError where a run has none of it, or the file is of another form."""
    known = scored_steps(run)
    if step not in known:
        has = f"it has those of {len(known)} steps from {known[0]} to {known[-1]}" if known else "it has none"
        raise InputError(f"{run} has no scored rollouts of step {step}: {has}; name a run of objective rmt or grpo")
    path = rollout_file(scored_directory(run), step)
    lines = read_jsonl(path)
    header = next(lines, {})
    if type(header.get("format")) is not int or header["format"] != SCORED_FORMAT or header.get("step") != step:
        raise InputError(
            f"{path} does not begin with a header of scored rollouts of step {step} (format {SCORED_FORMAT}): remove it"
        )
    return [_prompt(path, number, line) for number, line in enumerate(lines, 2)]


def _prompt(path: Path, number: int, line: dict[str, Any]) -> ScoredPrompt:
    try:
        return _PROMPT.validate_json(orjson.dumps(line), strict=True)
    except ValidationError as error:
        raise InputError(
            f"{path}, line {number}, is no scored prompt ({first_mistake(error)}): remove the file"
        ) from None
