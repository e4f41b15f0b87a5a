"""`davinci eval problems`: the same held-out problems to several models, one after the other."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import InputError
from data_prep.corpus import Corpus
from data_prep.io.files import jsonl_writer, new_directory, refuse_occupied, write_json
from data_prep.io.markdown import cell
from data_prep.io.progress import counter
from data_prep.tokenizers import is_tokenizer_of
from megatron_davinci.config import Recipe
from megatron_davinci.config.objectives import Grpo
from megatron_davinci.config.registries import PROBLEM_GRADERS
from megatron_davinci.core.groups import all_gather_object, data_group, data_rank, is_main_rank, sync_errors
from megatron_davinci.evaluate.each_model import ask_each, check_models
from megatron_davinci.evaluate.overlap import documents_of
from megatron_davinci.evaluate.tables import accuracy_cell, accuracy_of
from megatron_davinci.rl.answers import AnswerEnd, read_response
from megatron_davinci.rl.chat_prompt import template_of
from megatron_davinci.rl.engines.base import AnswersPrompts, GenerationRequest, RequestBranch, Sampling, flatten
from megatron_davinci.rl.inputs import read_stop_token_ids
from megatron_davinci.rl.problems import ALL_PROBLEMS, read_answers, read_difficulties
from megatron_davinci.rl.rollout_files import Response
from megatron_davinci.rl.token_bytes import TokenBytes


@dataclass(frozen=True)
class ProblemOutcome:
    """What a model made of a problem: `answer` is None where it gave none, `correct` where nobody could judge it."""

    document: int
    difficulty: str | None
    correct: bool | None
    answer: str | None
    tokens: int
    thought_tokens: int
    closed: bool
    finished: bool
    response: str


def evaluate_problems(
    recipe: Recipe, models: dict[str, str], corpus: Path, temperature: float, batch: int, out: Path
) -> str:
    """Write OUT/tables.md, results.json, and NAME.jsonl.zst of each model; gives the table, on the main rank alone.

    `batch`: problems that are answered together. Raises InputError for what does not fit.
    """
    index = next((n for n in range(len(recipe.data.stages)) if isinstance(recipe.stage(n).objective, Grpo)), None)
    if index is None:
        raise InputError("the recipe has no stage with objective grpo, which says how problems are asked")
    refuse_occupied(out)
    stage = recipe.stage(index)
    check_models(recipe, stage, models)
    asked = _Asked(recipe, index, Corpus(corpus), temperature)
    found = ask_each(
        recipe,
        stage,
        models,
        asked.stop_token_ids,
        out.with_name(f"{out.name}.engine"),
        lambda name, engine: asked.ask(engine, batch, name),
    )
    if found is None:
        return ""
    outcomes = {name: asked.outcomes(responses) for name, responses in found.items()}
    summaries = {name: _summarize(each) for name, each in outcomes.items()}
    table = problem_table(summaries)
    facts = {"corpus": str(corpus), "temperature": temperature, "documents_left_out_as_trained_on": asked.trained_on}
    with new_directory(out) as directory:
        for name, each in outcomes.items():
            with jsonl_writer(directory / f"{name}.jsonl.zst") as writer:
                for outcome in each:
                    writer.write(asdict(outcome))
        (directory / "tables.md").write_text(table)
        of_models = {name: {"directory": models[name], **summary} for name, summary in summaries.items()}
        write_json(directory / "results.json", {**facts, "models": of_models})
    return table


class _Asked:
    """Problems of a corpus, and how they are asked and judged. Raises InputError where they cannot be."""

    def __init__(self, recipe: Recipe, index: int, corpus: Corpus, temperature: float) -> None:
        stage, directory = recipe.stage(index), recipe.find_tokenizer()
        assert isinstance(stage.objective, Grpo)
        if directory is None or not is_tokenizer_of(directory, corpus.manifest["tokenizer"]):
            raise InputError(f"{corpus.prefix} was not tokenized with the recipe's tokenizer ({directory}): do so")
        self._options, self._corpus, self._seed = stage.objective, corpus, recipe.seed
        self._texts = TokenBytes(directory)
        prompt = template_of(self._options, self._texts)
        prompt.check_budget(False)
        self._preamble = prompt.preamble_ids() or list(self._texts.begin)
        self._instruction = prompt.instruction_ids(0)
        self._answers, self._difficulties = read_answers(corpus), read_difficulties(corpus)
        trained = documents_of(corpus, [Path(blend.corpus) for each in recipe.data.stages for blend in each.blend])
        self.trained_on = len(trained)
        self._documents = [number for number in range(len(corpus)) if number not in trained]
        self.stop_token_ids = read_stop_token_ids(directory, corpus.manifest["tokenizer"]["eod"])
        self._end = AnswerEnd(self._texts.texts) if self._options.stop_at_answer else None
        self._sampling = Sampling(temperature, ends=self._end)
        longest = int(corpus.lengths[self._documents].max()) + len(self._preamble) + len(self._instruction)
        if longest + self._options.max_tokens > stage.seq_length:
            raise InputError(
                f"a problem with its prompt of {longest} tokens and a response of {self._options.max_tokens} exceed "
                f"seq_length {stage.seq_length}: raise it, or lower objective.max_tokens"
            )

    def ask(self, engine: AnswersPrompts, batch: int, name: str) -> list[Response]:
        """The responses of one model, the same on every rank."""
        rank, size = data_rank()
        batches = [self._documents[at : at + batch] for at in range(0, len(self._documents), batch)]
        ours: list[tuple[int, list[Response]]] = []
        with counter(f"batches of {name}", len(batches), quiet=not is_main_rank()) as count, sync_errors():
            for number in range(rank, len(batches), size):
                found = engine.generate([self._request(each) for each in batches[number]], self._sampling)
                ours.append((number, [self._cut(response) for [response] in flatten(found)]))
                count(size)
        shares = all_gather_object(ours, data_group())
        every = sorted(chain.from_iterable(shares), key=lambda pair: pair[0])
        return [response for _, found in every for response in found]

    def _request(self, document: int) -> GenerationRequest:
        ids = [*self._preamble, *self._corpus[document].tolist()]
        draws = np.random.default_rng([self._seed, document]).random((1, self._options.max_tokens))
        return GenerationRequest(ids, [RequestBranch(len(ids), self._instruction, draws)])

    def _cut(self, response: Response) -> Response:
        return response if self._end is None else self._end.cut(response)

    def outcomes(self, responses: Sequence[Response]) -> list[ProblemOutcome]:
        """What became of each problem."""
        readings = [read_response(self._texts.of(r.tokens), self._options.stop_at_answer) for r in responses]
        said = [None if r.answer is None else r.answer.decode(errors="replace").strip() for r in readings]
        truths = [self._answers[document] for document in self._documents]
        pairs = [(truth, each) for truth, each in zip(truths, said, strict=True) if each is not None]
        verdicts = PROBLEM_GRADERS.get(self._options.grader)(pairs)
        return [
            ProblemOutcome(
                document,
                None if self._difficulties is None else self._difficulties[document],
                False if answer is None else verdicts[truth, answer],
                answer,
                len(response.tokens),
                reading.thought_tokens,
                reading.closed,
                response.finished,
                self._texts.text_of(response.tokens),
            )
            for document, truth, answer, response, reading in zip(
                self._documents, truths, said, responses, readings, strict=True
            )
        ]


def _summarize(outcomes: Sequence[ProblemOutcome]) -> dict[str, Any]:
    """Accuracy with its interval, of all and of each difficulty, and lengths; unjudged answers are counted apart."""
    levels = sorted(
        (each for each in outcomes if each.difficulty is not None), key=lambda each: _natural(str(each.difficulty))
    )
    groups = {str(name): list(group) for name, group in groupby(levels, key=lambda each: each.difficulty)}
    count = len(outcomes)
    return {
        "accuracy": {name: accuracy_of(_judged(group)) for name, group in {ALL_PROBLEMS: outcomes, **groups}.items()},
        "response_tokens": sum(each.tokens for each in outcomes) / count,
        "thought_tokens": sum(each.thought_tokens for each in outcomes) / count,
        "unclosed_fraction": sum(not each.closed for each in outcomes) / count,
        "truncated_fraction": sum(not each.finished for each in outcomes) / count,
        "unjudged": sum(each.correct is None for each in outcomes),
    }


def _judged(outcomes: Sequence[ProblemOutcome]) -> list[bool]:
    return [each.correct for each in outcomes if each.correct is not None]


def _natural(name: str) -> tuple[float, str]:
    """Numbers in their order, before names."""
    try:
        return float(name), name
    except ValueError:
        return float("inf"), name


def problem_table(summaries: dict[str, dict[str, Any]]) -> str:
    """Accuracy of each model by difficulty, in percent with 95% intervals, and lengths."""
    first = next(iter(summaries.values()))["accuracy"]
    heads = [f"{cell(name)} (n = {found['count']})" for name, found in first.items()]
    lines = [
        f"| Model | {' | '.join(heads)} | Tokens | of them thought | Unclosed, % | Cut off, % |",
        "|---" * (len(heads) + 5) + "|",
    ]
    for name, summary in summaries.items():
        shown = [accuracy_cell(found) for found in summary["accuracy"].values()]
        lengths = [f"{summary[key]:.1f}" for key in ("response_tokens", "thought_tokens")]
        shares = [f"{100 * summary[key]:.1f}" for key in ("unclosed_fraction", "truncated_fraction")]
        lines.append(f"| {name} | {' | '.join([*shown, *lengths, *shares])} |")
    return "\n".join(lines) + "\n"
