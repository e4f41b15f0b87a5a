"""Problems whose final answer can be verified: a corpus of their texts, with the answers beside it. Torch-free.

PREFIX.answers.json: {"format": 1, "corpus": checksum, "answers": [...]}, one for each document of PREFIX.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep import InputError
from data_prep.corpus import Corpus, CorpusWriter
from data_prep.corpus.indexed import corpus_checksum
from data_prep.io.files import read_json, read_jsonl, write_json
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
_MARK = "####"  # of GSM8K, before the final answer


def write_problems(
    inputs: Sequence[Path], tokenizer: Path, out: Path, problem_key: str, answer_key: str
) -> dict[str, Any]:
    """Write PREFIX with its answers; gives what is worth telling. Raises InputError for a line that is no problem."""
    encoder, description = load_tokenizer(tokenizer_file(tokenizer))
    problems = [found for path in inputs for found in _read(path, problem_key, answer_key, encoder)]
    if not problems:
        raise InputError(f"{', '.join(map(str, inputs))}: no problem is there; nothing is written")
    writer = CorpusWriter(out, description)
    writer.add([ids for ids, _ in problems])
    manifest = writer.prepare({"made_by": "davinci rmt problems", "inputs": [path.name for path in inputs]})
    answers = [answer for _, answer in problems]
    write_json(answers_file(out), {"format": _FORMAT, "corpus": corpus_checksum(manifest), "answers": answers})
    writer.publish()
    return {"problems": len(problems), "tokens": manifest["tokens"], "corpus": str(out)}


def _read(path: Path, problem_key: str, answer_key: str, encoder: Tokenizer) -> Iterator[tuple[list[int], str]]:
    """(ids of the problem, final answer) of each record."""
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
        yield ids, final


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
    path = answers_file(corpus.prefix)
    if not path.is_file():
        raise InputError(f"{corpus.prefix} has no answers ({path.name}): write it with davinci rmt problems")
    found = read_json(path)
    if not isinstance(found, dict) or found.get("corpus") != corpus.checksum:
        raise InputError(f"{path} answers other problems than {corpus.prefix} has: write both again")
    answers: Any = found.get("answers")
    if (
        found.get("format") != _FORMAT
        or not isinstance(answers, list)
        or len(answers) != len(corpus)
        or not all(isinstance(answer, str) for answer in answers)
    ):
        raise InputError(f"{path} is damaged, or of another version: write both again with davinci rmt problems")
    return answers


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
