"""Problems whose final answer can be verified: a corpus of their texts, with the answers beside it. Torch-free.

PREFIX.answers.json: {"format": 1, "corpus": checksum, "answers": [...]}, one for each document of PREFIX, and where
the problems say how difficult they are, "difficulties": [...], texts.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from data_prep import InputError
from data_prep.corpus import Corpus, CorpusWriter
from data_prep.corpus.indexed import corpus_checksum, corpus_files
from data_prep.io.files import read_json, read_jsonl, refuse_existing, write_json
from data_prep.tokenizers import load_tokenizer, tokenizer_file
from data_prep.tokenizers.base import Tokenizer
from megatron_davinci.config.objectives import Grpo
from megatron_davinci.config.registries import PROBLEM_GRADERS
from megatron_davinci.data.batches import StageBatches
from megatron_davinci.rl.answers import last_boxed, read_response
from megatron_davinci.rl.difficulty import NONE
from megatron_davinci.rl.math_grader import MAX_CHARACTERS
from megatron_davinci.rl.prompt_source import DocumentPrompts, Grader, PromptSource
from megatron_davinci.rl.rollout_files import Group, PromptSpec, Response, prompt_hash
from megatron_davinci.rl.token_bytes import TokenBytes
from megatron_davinci.weights.checkpoint_files import file_entry

_FORMAT = 1
ALL_PROBLEMS = "all"
"""What tables call the problems of every difficulty."""
_MARK = "####"  # of GSM8K, before the final answer


@dataclass(frozen=True)
class ProblemKeys:
    """The fields of a record that hold a problem, its answer or a solution that ends with it, and how difficult it is;
    no `difficulty`: nobody says."""

    problem: str = "problem"
    answer: str = "answer"
    difficulty: str | None = None


class _Problem(NamedTuple):
    ids: list[int]
    answer: str
    difficulty: str | None


def write_problems(
    inputs: Sequence[Path],
    tokenizer: Path,
    out: Path,
    keys: ProblemKeys,
    split: tuple[int, int] | None = None,
    seed: int = 1234,
) -> dict[str, Any]:
    """Write PREFIX with its answers; gives what is worth telling. Raises InputError for a line that is no problem.

    `split`: PREFIX-train and PREFIX-test with so many problems instead, drawn by `seed`; a problem that is there twice
    is in one of them. Each has as much of each difficulty as all of them have.
    """
    encoder, description = load_tokenizer(tokenizer_file(tokenizer))
    problems = [found for path in inputs for found in _read(path, keys, encoder)]
    if not problems:
        raise InputError(f"{', '.join(map(str, inputs))}: no problem is there; nothing is written")
    made_by = {"made_by": "davinci rmt problems", "inputs": [path.name for path in inputs]}
    if split is None:
        return _write_corpus(problems, description, out, made_by)
    outputs = {name: out.with_name(f"{out.name}-{name}") for name in ("train", "test")}
    for prefix in outputs.values():  # both, or none
        refuse_existing(corpus_files(prefix, masked=False)["idx"])
    once = _once(problems)
    parts = zip(outputs.items(), _stratified(once, split, seed), strict=True)
    told = {name: _write_corpus(part, description, prefix, made_by) for (name, prefix), part in parts}
    return {"different problems": len(once), "there twice": len(problems) - len(once), **told}


def _once(problems: Sequence[_Problem]) -> list[_Problem]:
    """Each problem once. Raises InputError for one that is there with two answers."""
    found: dict[tuple[int, ...], _Problem] = {}
    for number, problem in enumerate(problems, 1):
        known = found.setdefault(tuple(problem.ids), problem)
        if known.answer != problem.answer:
            raise InputError(
                f"problem {number} has the answer {problem.answer!r}, and the same problem before it {known.answer!r}: "
                "leave one out"
            )
    return list(found.values())


def _write_corpus(
    problems: Sequence[_Problem], description: dict[str, Any], out: Path, made_by: dict[str, Any]
) -> dict[str, Any]:
    writer = CorpusWriter(out, description)
    writer.add([problem.ids for problem in problems])
    manifest = writer.prepare(made_by)
    facts: dict[str, Any] = {"format": _FORMAT, "corpus": corpus_checksum(manifest)}
    facts["answers"] = [problem.answer for problem in problems]
    told: dict[str, Any] = {"problems": len(problems), "tokens": manifest["tokens"], "corpus": str(out)}
    if problems[0].difficulty is not None:
        facts["difficulties"] = [problem.difficulty for problem in problems]
        told["difficulties"] = {name: facts["difficulties"].count(name) for name in sorted(set(facts["difficulties"]))}
    write_json(answers_file(out), facts)
    writer.publish()
    return told


def _stratified(problems: Sequence[_Problem], split: tuple[int, int], seed: int) -> tuple[list[_Problem], ...]:
    """Disjoint parts with so many problems, each with as much of each difficulty as all have, but for rounding."""
    if sum(split) > len(problems):
        raise InputError(
            f"--split {split[0]} {split[1]} needs {sum(split)} different problems, {len(problems)} are there: ask for "
            "fewer, or give more"
        )
    levels: dict[str | None, list[_Problem]] = {}
    for problem in problems:
        levels.setdefault(problem.difficulty, []).append(problem)
    order = random.Random(seed)
    rest = [order.sample(levels[name], len(levels[name])) for name in sorted(levels, key=str)]
    parts = []
    for count in split:
        taken = _largest_remainders([len(level) for level in rest], count)
        parts.append([problem for level, number in zip(rest, taken, strict=True) for problem in level[:number]])
        rest = [level[number:] for level, number in zip(rest, taken, strict=True)]
    return tuple(order.sample(part, len(part)) for part in parts)


def _largest_remainders(sizes: Sequence[int], count: int) -> list[int]:
    """`count` shared out in proportion to `sizes`, none above its own."""
    shares = [size * count / sum(sizes) for size in sizes]
    found = [int(share) for share in shares]
    by_remainder = sorted(range(len(sizes)), key=lambda number: found[number] - shares[number])
    for number in by_remainder[: count - sum(found)]:
        found[number] += 1
    return found


def _read(path: Path, keys: ProblemKeys, encoder: Tokenizer) -> Iterator[_Problem]:
    problem_key, answer_key = keys.problem, keys.answer
    for number, line in enumerate(read_jsonl(path), 1):
        where, problem, answer = f"{path}, record {number}", line.get(problem_key), line.get(answer_key)
        if not isinstance(problem, str) or type(answer) not in (str, int):
            raise InputError(
                f"{where}, lacks {problem_key} as text, or {answer_key} as text or a whole number: name the fields "
                "with --problem-key and --answer-key, and write other numbers as text"
            )
        [ids], final = encoder.encode([problem]), final_answer(str(answer))
        if not problem.strip() or not ids or not final:
            raise InputError(f"{where}: an empty problem or answer: leave it out")
        if len(final) > MAX_CHARACTERS:
            raise InputError(
                f"{where}: a final answer of {len(final)} characters, {MAX_CHARACTERS} at most can be compared: mark "
                "it with \\boxed{} or ####, or leave the problem out"
            )
        yield _Problem(ids, final, _difficulty(where, line, keys.difficulty))


def _difficulty(where: str, line: dict[str, Any], key: str | None) -> str | None:
    if key is None:
        return None
    value = line.get(key)
    if type(value) not in (str, int, float) or not str(value).strip():
        raise InputError(f"{where}, lacks {key} as text or a number: name the field with --difficulty-key")
    if (name := str(value).strip()) == ALL_PROBLEMS:
        raise InputError(f"{where}: {key} is {name}, which tables call the whole: name that difficulty otherwise")
    return name


def _verdict(judged: bool | None) -> dict[str, Any]:
    """What is known of a response: one that was not judged is not wrong."""
    return {"correct": bool(judged), "judged": judged is not None}


def final_answer(solution: str) -> str:
    """What comes after GSM8K's ####, else stands in the last \\boxed{}, else all of it."""
    if _MARK in solution:
        return solution.rpartition(_MARK)[2].strip()
    boxed = last_boxed(solution.encode())
    return (solution if boxed is None else boxed.decode()).strip()


def answers_file(prefix: Path) -> Path:
    """Where the answers to a corpus of problems lie."""
    return prefix.with_name(f"{prefix.name}.answers.json")


def read_answers(corpus: Corpus) -> list[str]:
    """The answer of each document. Raises InputError where there are none, or another corpus's."""
    return _read_answers_file(corpus)[0]


def read_difficulties(corpus: Corpus) -> list[str] | None:
    """How difficult each problem is, where its source says so. Raises InputError as `read_answers`."""
    return _read_answers_file(corpus)[1]


def _read_answers_file(corpus: Corpus) -> tuple[list[str], list[str] | None]:
    path = answers_file(corpus.prefix)
    if not path.is_file():
        raise InputError(f"{corpus.prefix} has no answers ({path.name}): write it with davinci rmt problems")
    found = read_json(path)
    if not isinstance(found, dict) or found.get("corpus") != corpus.checksum:
        raise InputError(f"{path} answers other problems than {corpus.prefix} has: write both again")
    answers, difficulties = found.get("answers"), found.get("difficulties")
    if (
        found.get("format") != _FORMAT
        or not _are_texts(answers, len(corpus))
        or not (difficulties is None or _are_texts(difficulties, len(corpus)))
    ):
        raise InputError(f"{path} is damaged, or of another version: write both again with davinci rmt problems")
    return answers, difficulties


def _are_texts(values: Any, count: int) -> TypeGuard[list[str]]:
    return isinstance(values, list) and len(values) == count and all(isinstance(value, str) for value in values)


class ProblemPrompts(PromptSource[Grpo]):
    """Asks for the answer to each document. Raises InputError where a corpus has no answers."""

    def __init__(self, stage: StageBatches, options: Grpo, texts: TokenBytes) -> None:
        super().__init__(stage, options, texts)
        self.preamble = self.preamble or list(texts.begin)  # a problem alone begins a text, as the model knows one
        self._answers = {corpus.prefix: read_answers(corpus) for corpus in stage.documents.corpora}
        self.sources = [file_entry(answers_file(prefix))["xxh3_64"] for prefix in self._answers]

    def prompts(self, batch: int) -> list[DocumentPrompts]:
        """See PromptSource."""
        found = []
        for span in self._stage.drawn(batch):
            ids = self._stage.documents.tokens(span)
            prompt = prompt_hash(self.prompt(ids.tolist(), len(ids), 0))
            found.append(
                DocumentPrompts(span, ids, [PromptSpec(span.document, span.epoch, len(ids), NONE, 0, prompt)], 0, 0)
            )
        return found

    def grader(self, document: DocumentPrompts, spec: PromptSpec) -> Grader:
        """See PromptSource: what the file of rollouts says."""
        return lambda response, _: bool(response.correct)

    def truth(self, document: DocumentPrompts, spec: PromptSpec) -> str:
        """See PromptSource."""
        return self._answer(spec)

    def grade(self, groups: Sequence[Group]) -> list[Group]:
        """See PromptSource: whether each answer is the problem's."""
        said = [[self._said(response) for response in group.responses] for group in groups]
        truths = [self._answer(group.spec) for group in groups]
        pairs = [(truth, each) for truth, every in zip(truths, said, strict=True) for each in every if each is not None]
        verdicts = PROBLEM_GRADERS.get(self.options.grader)(pairs)
        return [
            replace(
                group,
                responses=[
                    replace(response, **_verdict(False if each is None else verdicts[truth, each]))
                    for response, each in zip(group.responses, every, strict=True)
                ],
            )
            for group, truth, every in zip(groups, truths, said, strict=True)
        ]

    def _said(self, response: Response) -> str | None:
        answer = read_response(self._texts.of(response.tokens), self.options.stop_at_answer).answer
        return None if answer is None else answer.decode(errors="replace").strip()

    def _answer(self, spec: PromptSpec) -> str:
        corpus, document = self._stage.documents.place_of(spec.document)
        return self._answers[corpus.prefix][document]
