"""Rollouts on disk: a file STEP.jsonl.zst for each optimizer step, which starts with a header. Torch-free.

The header: {"format": 1, "step": N, "policy_step": M, "tokenizer": fingerprint, ...}; N is the step that trains on
the rollouts, from 0, and M the number of steps that the policy had taken that wrote them (N, where it is on-policy).
A "temperature" other than 1 is named: log-probabilities are those of the distribution that was sampled from. An engine
with weights of its own adds "engine_version", "weights", the fingerprint of those that answered, and their "dtype".
Then a line for each group: the fields of `PromptSpec`, and `responses`, each {"tokens": ids, "log_probs": nats,
"finished": bool} and, where there is a reference model, "reference_log_probs"; where the prompt is a problem,
"correct": whether the answer is. Whatever else a line holds is for people.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh3_64

from data_prep import InputError
from data_prep.io.files import jsonl_writer, read_jsonl

ROLLOUT_FORMAT = 1


@dataclass(frozen=True)
class PromptSpec:
    """A position of a document that is asked for: `level` of difficulty (0 to 2), `budget` B_t of its prompt.

    `prompt`: xxh3 of the prompt's ids, which ties an answer to what was asked.
    """

    document: int
    epoch: int
    position: int
    level: int
    budget: int
    prompt: str


@dataclass(frozen=True)
class Response:
    """Ids and the log-probability of each, in nats, as its writer saw them; not `finished`: cut off at the longest.

    `correct`: whether its answer is correct, where the document cannot tell. `cut_tokens`: how many followed its
    answer, which are left out. Not `judged`: nobody could say whether it is correct, so no reward is drawn from it.
    """

    tokens: Sequence[int]
    log_probs: Sequence[float]
    finished: bool
    reference_log_probs: Sequence[float] | None = None
    correct: bool | None = None
    judged: bool = True
    cut_tokens: int = 0


@dataclass(frozen=True)
class Group:
    """The G responses to one prompt."""

    spec: PromptSpec
    responses: Sequence[Response]


def prompt_hash(ids: Sequence[int]) -> str:
    """Identity of a prompt."""
    return xxh3_64(np.asarray(ids, np.int64).tobytes()).hexdigest()


def rollout_file(directory: Path, step: int) -> Path:
    """Where the rollouts for one step lie."""
    return directory / f"step_{step:07d}.jsonl.zst"


def remove_after(directory: Path, step: int) -> None:
    """Remove the files of the steps after one: they are of a course that the run has left."""
    for path in directory.glob("step_*.jsonl.zst"):
        if path.name > rollout_file(directory, step).name:
            path.unlink()


def write_rollouts(path: Path, header: Mapping[str, Any], groups: Iterable[Group]) -> None:
    """Write a file of rollouts, which appears by rename. `header`: step, policy_step, tokenizer, and notes."""
    with jsonl_writer(path) as writer:
        writer.write({"format": ROLLOUT_FORMAT, **header})
        for group in groups:
            writer.write({**asdict(group.spec), "responses": [asdict(response) for response in group.responses]})


def read_rollouts(path: Path) -> tuple[dict[str, Any], list[Group]]:
    """Header and groups. Raises InputError for what is no such file."""
    lines = read_jsonl(path)
    header = _checked_header(path, next(lines, {}))
    return header, [_group(path, number, line) for number, line in enumerate(lines, 2)]


def read_header(path: Path) -> dict[str, Any]:
    """The first line alone. Raises InputError for what is no file of rollouts."""
    return _checked_header(path, next(read_jsonl(path), {}))


def _checked_header(path: Path, header: dict[str, Any]) -> dict[str, Any]:
    counts = [header.get("step"), header.get("policy_step")]
    if header.get("format") != ROLLOUT_FORMAT or not all(map(_is_count, counts)) or "tokenizer" not in header:
        raise InputError(f"{path} does not begin with a header of rollouts (format {ROLLOUT_FORMAT}): write it again")
    return header


def _group(path: Path, number: int, line: dict[str, Any]) -> Group:
    try:
        spec = _spec(line)
        responses = [_response(entry) for entry in line["responses"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}, line {number}, is no group of rollouts ({error!r}): write it again") from None
    return Group(spec, responses)


def _spec(line: dict[str, Any]) -> PromptSpec:
    spec = PromptSpec(**{name: line[name] for name in PromptSpec.__dataclass_fields__})
    if not all(map(_is_count, (spec.document, spec.epoch, spec.position, spec.budget))):
        raise ValueError("document, epoch, position and budget are integers from 0")
    if type(spec.level) is not int or not isinstance(spec.prompt, str):  # -1: of no level
        raise ValueError("level is an integer, prompt a hash")
    return spec


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _response(entry: Any) -> Response:
    if not isinstance(entry, dict) or type(entry.get("finished")) is not bool:
        raise ValueError("a response without tokens, log_probs and finished")
    if type(entry.get("correct")) not in (type(None), bool):
        raise ValueError("correct is neither true nor false")
    optional = {name: entry.get(name) for name in ("reference_log_probs", "correct")}
    if not _is_count(entry.get("cut_tokens", 0)):
        raise ValueError("cut_tokens is no number of tokens")
    cut, judged = entry.get("cut_tokens", 0), entry.get("judged", True)
    if type(judged) is not bool:
        raise ValueError("judged is neither true nor false")
    tokens, log_probs = entry["tokens"], entry["log_probs"]
    response = Response(tokens, log_probs, entry["finished"], **optional, judged=judged, cut_tokens=cut)
    known = [response.log_probs, *([] if response.reference_log_probs is None else [response.reference_log_probs])]
    for numbers in known:
        if len(numbers) != len(response.tokens):
            raise ValueError(f"{len(response.tokens)} tokens with {len(numbers)} log-probabilities")
    if not all(map(_is_count, response.tokens)):
        raise ValueError("a token that is no id")
    if not all(type(value) in (float, int) and value <= 0 for numbers in known for value in numbers):
        raise ValueError("a log-probability that is no number, or above 0")
    return response
