"""The rollouts of a step by an engine: prompts of the recipe, answered by the present policy, as a file to replay.

What is drawn depends on seed, step and prompt alone. A run that was interrupted therefore finds, or writes again, the
same file.
"""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.io.registry import import_path
from megatron_davinci.core.groups import (
    all_gather_object,
    broadcast_object,
    data_group,
    data_rank,
    is_main_rank,
    sync_errors,
)
from megatron_davinci.core.step import Trainer
from megatron_davinci.core.timers import Timers
from megatron_davinci.rl.engines.base import Engine, GenerationRequest, RequestBranch, Sampling
from megatron_davinci.rl.engines.reference import Reference
from megatron_davinci.rl.inputs import RolloutInputs
from megatron_davinci.rl.prompt_source import DocumentPrompts
from megatron_davinci.rl.rollout_files import Group, PromptSpec, write_rollouts


class Sampler:
    """Writes the rollouts of a stage's steps."""

    def __init__(self, inputs: RolloutInputs, engine: Engine, reference: Reference | None, timers: Timers) -> None:
        self._inputs, self._engine, self._reference, self._timers = inputs, engine, reference, timers
        options = inputs.options
        ends = None if inputs.answer_end is None else inputs.answer_end.follow
        self._sampling = Sampling(options.temperature, options.rollouts.top_p or 1.0, ends)

    @classmethod
    def of(cls, inputs: RolloutInputs, trainer: Trainer) -> "Sampler":
        """A sampler that answers with the trainer's own weights."""
        options, stage = inputs.options, inputs.recipe.stage(inputs.index)
        engine: type[Engine] = import_path(options.rollouts.engine_class)
        made = engine.of(
            trainer.chunks, trainer.device, stage, options.rollouts, inputs.stop_token_ids, trainer.timers.moved
        )
        reference = None
        if options.scores_reference:
            reference = Reference.of(inputs.recipe, stage, options, inputs.model, trainer.device)
        return cls(inputs, made, reference, trainer.timers)

    def write(self, step: int) -> int:
        """Write the rollouts of a step of the stage, unless they are there; returns the number of tokens written on all
        ranks."""
        at = self._inputs.first_step + step
        path = self._inputs.replay.file(at)
        # no other rank looks: NFS would remember that the file was not there
        if broadcast_object(is_main_rank() and path.is_file()):
            return 0
        source = self._inputs.prompt_source
        documents = source.prompts(step)
        with self._timers("rollout"):
            groups = self._answer(documents, at)
        if self._reference is not None:
            with self._timers("reference"):
                groups = self._reference.score(source, documents, groups)
        with sync_errors():
            if is_main_rank():
                self._write(path, at, groups)
        return sum(len(response.tokens) for group in groups for response in group.responses)

    def _write(self, path: Path, step: int, groups: list[Group]) -> None:
        if self._inputs.options.graded_when_sampled:
            with self._timers("grading"):
                groups = self._inputs.prompt_source.grade(groups)
        header: dict[str, Any] = {"step": step, "policy_step": step, "tokenizer": self._inputs.replay.tokenizer}
        sampled = {"temperature": self._sampling.temperature, "top_p": self._sampling.top_p}
        sampled["stop_at_answer"] = self._inputs.answer_end is not None
        write_rollouts(path, {**header, **sampled, "engine": self._inputs.options.rollouts.engine}, groups)

    def _answer(self, documents: Sequence[DocumentPrompts], step: int) -> list[Group]:
        """All groups, on every rank; each data-parallel rank answers its share of the documents."""
        rank, size = data_rank()
        with sync_errors():
            requests = [self._request(document, step) for document in documents[rank::size]]
            ours = self._engine.generate(requests, self._sampling)
            if self._inputs.answer_end is not None:  # an engine of another's may not look for it
                cut = self._inputs.answer_end.cut
                ours = [[[cut(response) for response in branch] for branch in request] for request in ours]
        shares = all_gather_object(ours, data_group())
        by_document = [shares[number % size][number // size] for number in range(len(documents))]
        specs = chain.from_iterable(document.specs for document in documents)
        return [Group(spec, responses) for spec, responses in zip(specs, chain.from_iterable(by_document), strict=True)]

    def _request(self, document: DocumentPrompts, step: int) -> GenerationRequest:
        source = self._inputs.prompt_source
        branches = [
            RequestBranch(
                len(source.preamble) + spec.position,
                source.instruction(spec.budget),
                self._uniforms(spec, step),
            )
            for spec in document.specs
        ]
        return GenerationRequest([*source.preamble, *document.ids.tolist()], branches)

    def _uniforms(self, spec: PromptSpec, step: int) -> Any:
        options, inputs = self._inputs.options, self._inputs
        key = [inputs.recipe.seed, inputs.index, step, spec.epoch, spec.document, spec.position]
        return np.random.default_rng(key).random((options.group_size, options.max_tokens))
