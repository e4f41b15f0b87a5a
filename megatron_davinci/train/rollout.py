"""A step's rollouts by the engine: what the recipe asks, answered by the present policy, as a file that is replayed.

Draws hang on seed, step and question alone. A run that was interrupted therefore finds, or writes again, the same file.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_davinci.recipe import Recipe
from megatron_davinci.rmt.asks import DocumentAsks
from megatron_davinci.rmt.inputs import ReinforcementInputs
from megatron_davinci.rmt.options import MegatronRollouts
from megatron_davinci.rmt.problems import ProblemAsker
from megatron_davinci.rollout.engine import Engine, Question, Sampling, Text
from megatron_davinci.rollout.megatron import MegatronEngine
from megatron_davinci.rollout.records import Ask, Group, Response, write_rollouts
from megatron_davinci.train.parallel import agreed, data_rank, is_main_rank, raised_on_all
from megatron_davinci.train.prepare import Run
from megatron_davinci.train.reference import Reference
from megatron_davinci.train.step import Trainer
from megatron_davinci.train.timers import Timers


class Sampler:
    """Writes the rollouts of a stage's steps."""

    def __init__(
        self,
        recipe: Recipe,
        index: int,
        inputs: ReinforcementInputs,
        first_step: int,
        engine: Engine,
        reference: Reference | None,
        timers: Timers,
    ) -> None:
        rollouts = inputs.asker.options.rollouts
        assert isinstance(rollouts, MegatronRollouts)
        self._seed, self._index, self._inputs = recipe.seed, index, inputs
        self._first_step, self._engine, self._reference = first_step, engine, reference
        self._timers = timers
        self._sampling = Sampling(inputs.asker.options.temperature, rollouts.top_p)

    @classmethod
    def of(cls, run: Run, index: int, trainer: Trainer) -> "Sampler":
        """One that answers with the trainer's own weights."""
        inputs, stage = run.reinforcement[index], run.recipe.stage(index)
        assert inputs is not None
        options = inputs.asker.options
        assert isinstance(options.rollouts, MegatronRollouts)
        engine = MegatronEngine.of(trainer.chunks, trainer.device, stage, options.rollouts, inputs.stops)
        engine = replace(engine, moved=trainer.timers.moved)
        reference = None
        if options.kl_beta:
            reference = Reference.of(run.recipe, stage, options, run.model, trainer.device)
        first_step = run.batches.first_step(index)
        return cls(run.recipe, index, inputs, first_step, engine, reference, trainer.timers)

    def write(self, batch: int) -> int:
        """Write the rollouts of a step, unless they are there; returns how many tokens were written on all ranks."""
        step = self._first_step + batch
        path = self._inputs.replay.file(step)
        if agreed(int(is_main_rank() and path.is_file())):  # no other looks: NFS would remember that it was not there
            return 0
        asker = self._inputs.asker
        asked = asker.asks(batch)
        with self._timers("rollout"):
            groups = self._answer(asked, step)
        if self._reference is not None:
            with self._timers("reference"):
                groups = self._reference.score(asker, asked, groups)
        with raised_on_all():
            if is_main_rank():
                self._write(path, step, groups)
        return sum(len(response.tokens) for group in groups for response in group.responses)

    def _write(self, path: Path, step: int, groups: list[Group]) -> None:
        asker = self._inputs.asker
        if isinstance(asker, ProblemAsker):
            with self._timers("verdicts"):
                groups = asker.with_verdicts(groups)
        header: dict[str, Any] = {"step": step, "policy_step": step, "tokenizer": self._inputs.replay.tokenizer}
        sampled = {"temperature": self._sampling.temperature, "top_p": self._sampling.top_p}
        write_rollouts(path, {**header, **sampled, "engine": "megatron"}, groups)

    def _answer(self, asked: Sequence[DocumentAsks], step: int) -> list[Group]:
        """All groups, on every rank; each data-parallel rank answers its share of the documents."""
        rank, size = data_rank()
        with raised_on_all():
            ours = self._engine.answer([self._text(about, step) for about in asked[rank::size]], self._sampling)
        shares: list[list[list[list[Response]]]] = [[] for _ in range(size)]
        dist.all_gather_object(shares, ours, group=parallel_state.get_data_parallel_group())
        by_document = [shares[number % size][number // size] for number in range(len(asked))]
        asks = chain.from_iterable(about.asks for about in asked)
        return [Group(ask, responses) for ask, responses in zip(asks, chain.from_iterable(by_document), strict=True)]

    def _text(self, about: DocumentAsks, step: int) -> Text:
        asker = self._inputs.asker
        questions = [
            Question(len(asker.preamble) + ask.position, asker.instruction(ask.budget), self._draws(ask, step))
            for ask in about.asks
        ]
        return Text([*asker.preamble, *about.ids.tolist()], questions)

    def _draws(self, ask: Ask, step: int) -> Any:
        options = self._inputs.asker.options
        key = [self._seed, self._index, step, ask.epoch, ask.document, ask.position]
        return np.random.default_rng(key).random((options.responses, options.response_tokens))
