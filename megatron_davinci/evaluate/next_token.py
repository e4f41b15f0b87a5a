"""`davinci eval next-token`: the same held-out positions to several models, one after the other."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import InputError
from data_prep.corpus import Corpus
from data_prep.io.files import jsonl_writer, refuse_occupied, write_json
from data_prep.io.progress import counter
from data_prep.tokenizers import is_tokenizer_of
from megatron_davinci.config import Recipe, StageRecipe
from megatron_davinci.config.objectives import Rmt
from megatron_davinci.config.registries import GRADERS
from megatron_davinci.core.groups import (
    all_gather_object,
    data_group,
    data_rank,
    is_main_rank,
    sync_errors,
)
from megatron_davinci.evaluate.each_model import ask_each, check_models
from megatron_davinci.evaluate.overlap import documents_of
from megatron_davinci.evaluate.positions import Position, choose_positions, level_counts
from megatron_davinci.evaluate.tables import ModelOutcomes, Outcome, accuracy_tables, summarize_outcomes
from megatron_davinci.rl.answers import AnswerEnd, read_response
from megatron_davinci.rl.chat_prompt import template_of
from megatron_davinci.rl.curriculum import token_budget
from megatron_davinci.rl.engines.base import (
    AnswersPrompts,
    GenerationRequest,
    RequestBranch,
    Sampling,
)
from megatron_davinci.rl.inputs import read_stop_token_ids
from megatron_davinci.rl.prompt_source import CONTINUATION
from megatron_davinci.rl.rollout_files import Response
from megatron_davinci.rl.token_bytes import TokenBytes


@dataclass(frozen=True)
class Plan:
    """What is asked: `positions` of each difficulty; `budget` None: the recipe's last; `documents` in a batch."""

    corpus: Path
    positions: int
    budget: int | None
    temperature: float
    documents: int


def evaluate(recipe: Recipe, models: dict[str, str], plan: Plan, out: Path) -> str:
    """Write OUT/tables.md, results.json, and NAME.jsonl.zst of each model; gives the tables, on the main rank alone."""
    index = _reinforcement_stage(recipe)
    stage, options = recipe.stage(index), recipe.stage(index).objective
    assert isinstance(options, Rmt)
    refuse_occupied(out)
    check_models(recipe, stage, models)
    asked = _Asked.of(recipe, stage, options, Corpus(plan.corpus), plan)
    found = ask_each(
        recipe, stage, models, asked.stop_token_ids, out / "engine",
        lambda name, engine: _evaluate_one(engine, asked, plan, name),
    )  # fmt: skip
    return "" if found is None else _write(found, models, asked, plan, out)


def _reinforcement_stage(recipe: Recipe) -> int:
    for index in range(len(recipe.data.stages)):
        if isinstance(recipe.stage(index).objective, Rmt):
            return index
    raise InputError("the recipe has no stage with objective rmt, which says how positions are asked for")


def _last_budget(options: Rmt) -> int:
    """B_T; 0 where there is none."""
    budget = options.budget
    return 0 if budget is None else token_budget(1, 1, budget.initial, budget.gamma, budget.min)


@dataclass(frozen=True)
class _Asked:
    """Positions by document, and how they are asked for and judged."""

    options: Rmt
    corpus: Corpus
    texts: TokenBytes
    documents: Sequence[Sequence[Position]]
    preamble: Sequence[int]
    instruction: Sequence[int]
    budget: int
    stop_token_ids: frozenset[int]
    seed: int
    trained_on: int

    @classmethod
    def of(cls, recipe: Recipe, stage: StageRecipe, options: Rmt, corpus: Corpus, plan: Plan) -> "_Asked":
        """Raises InputError where the corpus has another tokenizer, or no text fits."""
        directory = recipe.find_tokenizer()
        if directory is None or not is_tokenizer_of(directory, corpus.manifest["tokenizer"]):
            raise InputError(f"{corpus.prefix} was not tokenized with the recipe's tokenizer ({directory}): do so")
        texts = TokenBytes(directory)
        prompt = template_of(options, texts)
        prompt.check_budget(plan.budget is not None or options.budget is not None)
        budget = plan.budget or _last_budget(options)
        preamble, instruction = prompt.preamble_ids(), prompt.instruction_ids(budget)
        longest = stage.seq_length - len(preamble) - len(instruction) - options.max_tokens
        if longest < 1:
            raise InputError(
                f"a prompt of {len(preamble) + len(instruction)} tokens and a response of {options.max_tokens} "
                f"leave no room in seq_length {stage.seq_length}: raise it, or lower objective.max_tokens"
            )
        answerable = texts.answerable_by(GRADERS.get(options.reward.grader))
        trained_on = documents_of(corpus, [Path(blend.corpus) for each in recipe.data.stages for blend in each.blend])
        positions = choose_positions(
            corpus, options.difficulty, answerable, plan.positions, longest, recipe.seed, trained_on
        )
        grouped = [list(group) for _, group in groupby(positions, key=lambda position: position.document)]
        stop_token_ids = read_stop_token_ids(directory, corpus.manifest["tokenizer"]["eod"])
        return cls(
            options, corpus, texts, grouped, preamble, instruction, budget, stop_token_ids, recipe.seed, len(trained_on)
        )

    def direct(self, document: Sequence[Position]) -> GenerationRequest:
        """One token, without a word about it."""
        ids = self.corpus[document[0].document].tolist()
        return GenerationRequest(ids, [RequestBranch(each.position, [], np.zeros((1, 1))) for each in document])

    def reasoned(self, document: Sequence[Position]) -> GenerationRequest:
        """A thought and an answer."""
        ids, longest = self.corpus[document[0].document].tolist(), self.options.max_tokens
        branches = [
            RequestBranch(len(self.preamble) + each.position, self.instruction, self._draws(each, longest))
            for each in document
        ]
        return GenerationRequest([*self.preamble, *ids], branches)

    def _draws(self, at: Position, longest: int) -> Any:
        return np.random.default_rng([self.seed, at.document, at.position]).random((1, longest))

    def outcome(self, at: Position, direct: Response, reasoned: Response) -> Outcome:
        """How both fared."""
        ids = self.corpus[at.document].tolist()
        truth = self.texts.of(ids[at.position : at.position + CONTINUATION])
        reading = read_response(self.texts.of(reasoned.tokens), self.options.stop_at_answer)
        grader = GRADERS.get(self.options.reward.grader)
        correct = grader(reading.answer, truth, self.texts.first_token)
        length = len(reasoned.tokens)
        return Outcome(
            at, direct.tokens[0] == ids[at.position], correct, length, reading.thought_tokens, reading.closed
        )


def _evaluate_one(
    engine: AnswersPrompts, asked: _Asked, plan: Plan, name: str
) -> tuple[ModelOutcomes, list[dict[str, Any]]]:
    """What one model makes of all positions, and its responses; the same on every rank."""
    rank, size = data_rank()
    batches = [asked.documents[at : at + plan.documents] for at in range(0, len(asked.documents), plan.documents)]
    ours: list[tuple[int, list[Outcome], list[dict[str, Any]], float]] = []
    with counter(f"batches of {name}", len(batches), quiet=not is_main_rank()) as count, sync_errors():
        for number in range(rank, len(batches), size):
            ours.append((number, *_evaluate_batch(engine, asked, batches[number], plan)))
            count(size)
    shares = all_gather_object(ours, data_group())
    every = sorted((entry for share in shares for entry in share), key=lambda entry: entry[0])
    outcomes = [outcome for _, found, _, _ in every for outcome in found]
    lines = [line for _, _, written, _ in every for line in written]
    return ModelOutcomes(outcomes, [seconds for *_, seconds in every]), lines


def _evaluate_batch(
    engine: AnswersPrompts, asked: _Asked, documents: Sequence[Sequence[Position]], plan: Plan
) -> tuple[list[Outcome], list[dict[str, Any]], float]:
    direct = engine.generate([asked.direct(document) for document in documents], Sampling(0.0))
    started = time.monotonic()
    ends = AnswerEnd(asked.texts.texts) if asked.options.stop_at_answer else None
    requests = [asked.reasoned(document) for document in documents]
    reasoned = engine.generate(requests, Sampling(plan.temperature, ends=ends))
    if ends is not None:
        reasoned = [[[ends.cut(response) for response in branch] for branch in request] for request in reasoned]
    seconds = time.monotonic() - started
    outcomes, lines = [], []
    for document, at_once, after in zip(documents, direct, reasoned, strict=True):
        for position, [token], [response] in zip(document, at_once, after, strict=True):
            outcomes.append(asked.outcome(position, token, response))
            said = b"".join(asked.texts.of(response.tokens)).decode(errors="replace")
            lines.append({**asdict(outcomes[-1]), "predicted": token.tokens[0], "response": said})
    return outcomes, lines, seconds


def _write(
    found: dict[str, tuple[ModelOutcomes, list[dict[str, Any]]]],
    models: dict[str, str],
    asked: _Asked,
    plan: Plan,
    out: Path,
) -> str:
    summaries = {name: summarize_outcomes(evaluation) for name, (evaluation, _) in found.items()}
    positions = [position for document in asked.documents for position in document]
    facts = {
        "corpus": str(plan.corpus),
        "documents_left_out_as_trained_on": asked.trained_on,
        "template": asked.options.template,
        "grader": asked.options.reward.grader,
        "budget": asked.budget,
        "max_tokens": asked.options.max_tokens,
        "temperature": plan.temperature,
        "documents_per_batch": plan.documents,
        "positions": level_counts(positions),
        "models": {name: {"directory": models[name], **summary} for name, summary in summaries.items()},
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, (_, lines) in found.items():
        with jsonl_writer(out / f"{name}.jsonl.zst") as writer:
            for line in lines:
                writer.write(line)
    tables = accuracy_tables(summaries)
    (out / "tables.md").write_text(tables)
    write_json(out / "results.json", facts)
    return tables
