"""The rollouts of a step by an engine: prompts of the recipe, answered by the present policy, as a file to replay.

What is drawn depends on seed, step and prompt alone. A run that was interrupted therefore finds, or writes again, the
same file. An engine with weights of its own tells their fingerprint; a file whose weights the run does not know goes.

With max_lag 1 the next step's prompts are asked while this step trains. Their answers are on disk before a checkpoint
is, so that a run that goes on from it trains on the same.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import InputError
from data_prep.io.errors import printable
from data_prep.io.registry import import_path
from megatron_davinci.core.groups import broadcast_object, data_rank, is_main_rank, sync_errors
from megatron_davinci.core.step import Trainer
from megatron_davinci.core.timers import Timers
from megatron_davinci.rl.engines.base import (
    Engine,
    EngineContext,
    GenerationRequest,
    RequestBranch,
    Responses,
    Sampling,
    flatten,
)
from megatron_davinci.rl.engines.reference import Reference
from megatron_davinci.rl.grading import verdicts
from megatron_davinci.rl.inputs import RolloutInputs
from megatron_davinci.rl.prompt_source import DocumentPrompts
from megatron_davinci.rl.rollout_files import Group, PromptSpec, read_header, write_rollouts


@dataclass(frozen=True)
class Sampled:
    """What sampling a step reports: `tokens` written on all ranks in `seconds`, 0 where the file was there."""

    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class _Ahead:
    """Answers for step `step` of the stage that are being written, by the policy after `policy_step` steps."""

    step: int
    policy_step: int
    weights: str | None
    started: float


class Sampler:
    """Writes the rollouts of a stage's steps."""

    def __init__(self, inputs: RolloutInputs, engine: Engine, reference: Reference | None, timers: Timers) -> None:
        self._inputs, self._engine, self._reference, self._timers = inputs, engine, reference, timers
        options = inputs.options
        self._sampling = Sampling(options.temperature, options.rollouts.top_p or 1.0, inputs.answer_end)
        self._max_lag = options.rollouts.lag_limit() or 0
        self._ahead: _Ahead | None = None
        self.known_weights: dict[int, str] = {}
        """Policy step -> fingerprint, of the policies that a kept file may come from."""

    @classmethod
    def of(cls, inputs: RolloutInputs, trainer: Trainer) -> "Sampler":
        """A sampler that answers with the trainer's own weights."""
        options, stage = inputs.options, inputs.recipe.stage(inputs.index)
        engine: type[Engine] = import_path(options.rollouts.engine_class)
        made = engine.of(
            EngineContext(
                trainer.chunks,
                trainer.device,
                stage,
                inputs.model,
                options.rollouts,
                inputs.stop_token_ids,
                Path(inputs.recipe.checkpoint.dir) / "engine",
                trainer.timers.moved,
            )
        )
        reference = None
        if options.scores_reference:
            reference = Reference.of(inputs.recipe, stage, options, inputs.model, trainer.device)
        return cls(inputs, made, reference, trainer.timers)

    def write(self, step: int) -> Sampled:
        """Write the rollouts of a step of the stage, unless they are there, and begin with the next step's where they
        may be older."""
        sampled = Sampled()
        if self._ahead is not None:
            sampled = self.write_ahead()
        if not self._is_there(step, step):
            weights = self._update(step)
            started = time.monotonic()
            with self._timers("rollout"):
                found = self._engine.generate_all(*self._requests(step), self._sampling)
            sampled = self._write(step, self._at(step), weights, found, started)
        if self._max_lag and step + 1 < self._inputs.stage.num_batches and not self._is_there(step + 1, step):
            self._start(step + 1)
        return sampled

    def write_ahead(self) -> Sampled:
        """Wait for answers that are being written for the next step, and write them. All ranks call it together."""
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return Sampled()
        with self._timers("rollout"):
            found = self._engine.finish()
        if found is None:  # a server failed: the step is sampled when it comes, by the policy of then
            return Sampled()
        return self._write(ahead.step, ahead.policy_step, ahead.weights, found, ahead.started)

    def close(self) -> None:
        """End the engine. All ranks call it together."""
        self._engine.close()

    def _start(self, step: int) -> None:
        """Have the present policy, which the step before trains, answer the prompts of `step`."""
        weights = self._update(step - 1)
        self._engine.start(*self._requests(step), self._sampling)
        self._ahead = _Ahead(step, self._at(step - 1), weights, time.monotonic())

    def _update(self, step: int) -> str | None:
        at = self._at(step)
        with self._timers("weight_sync"):
            weights = self._engine.update(at)
        if weights is not None:
            self.known_weights[at] = weights
        self.known_weights = {known: name for known, name in self.known_weights.items() if known >= at - self._max_lag}
        return weights

    def _at(self, step: int) -> int:
        return self._inputs.first_step + step

    def _is_there(self, step: int, now: int) -> bool:
        """Whether the file of a step is there, and by weights that the run knows, while it trains step `now`; another
        one is removed."""
        path = self._inputs.replay.file(self._at(step))
        # no other rank looks: NFS would remember that the file was not there
        header = broadcast_object(_header_of(path) if is_main_rank() and path.is_file() else None)
        if header is None:
            return False
        weights, policy_step = header.get("weights"), header["policy_step"]
        if weights is None:
            return True
        if policy_step == self._at(now) and policy_step not in self.known_weights:
            self._update(now)
        if self.known_weights.get(policy_step) == weights:
            return True
        if is_main_rank():
            said = f"{path} was written by weights that this run does not know ({weights}): sampling it again"
            print(said, file=sys.stderr, flush=True)
            path.unlink()
        return False

    def _write(self, step: int, policy_step: int, weights: str | None, found: Responses, started: float) -> Sampled:
        source, documents = self._inputs.prompt_source, self._inputs.prompt_source.prompts(step)
        specs = list(chain.from_iterable(document.specs for document in documents))
        groups = self._groups(specs, found)
        tokens = _tokens_of(groups)
        resampled = 0
        for round_ in range(1, self._inputs.options.dynamic_sampling + 1):
            groups, again = self._without_difference(documents, groups)
            if not again:
                break
            anew = self._answer_anew(step, documents, [groups[number].spec for number in again], round_)
            for number, group in zip(again, anew, strict=True):
                groups[number] = group
            tokens, resampled = tokens + _tokens_of(anew), resampled + len(again)
        seconds = time.monotonic() - started
        if self._reference is not None:
            with self._timers("reference"):
                groups = self._reference.score(source, documents, groups)
        with sync_errors():
            if is_main_rank():
                self._write_file(step, policy_step, weights, groups, resampled)
        return Sampled(tokens, seconds)

    def _groups(self, specs: Sequence[PromptSpec], found: Responses) -> list[Group]:
        end = self._inputs.answer_end
        responses = flatten(found)
        if end is not None:  # an engine of another's may not look for it
            responses = [[end.cut(response) for response in branch] for branch in responses]
        return [Group(spec, branch) for spec, branch in zip(specs, responses, strict=True)]

    def _without_difference(
        self, documents: Sequence[DocumentPrompts], groups: list[Group]
    ) -> tuple[list[Group], list[int]]:
        """The groups, on the main rank graded, and the numbers of those whose responses are all right or all wrong."""
        again: list[int] = []
        with sync_errors():
            if is_main_rank():
                groups = self._graded(groups)
                by_number = {document.span.document: document for document in documents}
                again = [
                    number
                    for number, group in enumerate(groups)
                    if len(self._verdicts(by_number[group.spec.document], group)) < 2
                ]
        return groups, broadcast_object(again)

    def _verdicts(self, document: DocumentPrompts, group: Group) -> set[bool]:
        inputs = self._inputs
        return verdicts(group, inputs.prompt_source.grader(document, group.spec), inputs.options, inputs.texts)

    def _answer_anew(
        self, step: int, documents: Sequence[DocumentPrompts], specs: Sequence[PromptSpec], round_: int
    ) -> list[Group]:
        """New responses to some of a step's prompts."""
        wanted = set(specs)
        asked = [replace(each, specs=[spec for spec in each.specs if spec in wanted]) for each in documents]
        asked = [document for document in asked if document.specs]
        rank, size = data_rank()
        requests = [self._request(document, self._at(step), round_) for document in asked[rank::size]]
        with self._timers("rollout"):
            return self._groups(specs, self._engine.generate_all(requests, len(asked), self._sampling))

    def _graded(self, groups: list[Group]) -> list[Group]:
        """The groups with `correct` set, where the document cannot tell."""
        ungraded = [number for number, group in enumerate(groups) if any(r.correct is None for r in group.responses)]
        if not self._inputs.options.graded_when_sampled or not ungraded:
            return groups
        with self._timers("grading"):
            graded = dict(zip(ungraded, self._inputs.prompt_source.grade([groups[n] for n in ungraded]), strict=True))
        return [graded.get(number, group) for number, group in enumerate(groups)]

    def _write_file(
        self, step: int, policy_step: int, weights: str | None, groups: list[Group], resampled: int
    ) -> None:
        groups = self._graded(groups)
        at, engine = self._at(step), self._inputs.options.rollouts.engine
        header: dict[str, Any] = {"step": at, "policy_step": policy_step, "tokenizer": self._inputs.replay.tokenizer}
        if self._inputs.options.dynamic_sampling:
            header["resampled"] = resampled
        sampled = {"temperature": self._sampling.temperature, "top_p": self._sampling.top_p}
        sampled["stop_at_answer"] = self._inputs.answer_end is not None
        described = self._engine.describe() if weights is None else {**self._engine.describe(), "weights": weights}
        write_rollouts(self._inputs.replay.file(at), {**header, **sampled, "engine": engine, **described}, groups)

    def _requests(self, step: int) -> tuple[list[GenerationRequest], int]:
        """This replica's share, and how many there are."""
        rank, size = data_rank()
        with sync_errors():
            documents = self._inputs.prompt_source.prompts(step)
            return [self._request(document, self._at(step)) for document in documents[rank::size]], len(documents)

    def _request(self, document: DocumentPrompts, step: int, round_: int = 0) -> GenerationRequest:
        source = self._inputs.prompt_source
        branches = [
            RequestBranch(
                len(source.preamble) + spec.position,
                source.instruction(spec.budget),
                self._uniforms(spec, step, round_),
            )
            for spec in document.specs
        ]
        return GenerationRequest([*source.preamble, *document.ids.tolist()], branches)

    def _uniforms(self, spec: PromptSpec, step: int, round_: int) -> Any:
        options, inputs = self._inputs.options, self._inputs
        key = [inputs.recipe.seed, inputs.index, step, spec.epoch, spec.document, spec.position]
        key += [round_] if round_ else []
        return np.random.default_rng(key).random((options.group_size, options.max_tokens))


def _tokens_of(groups: Sequence[Group]) -> int:
    return sum(len(each.tokens) + each.cut_tokens for group in groups for each in group.responses)


def _header_of(path: Path) -> dict[str, Any] | None:
    """The header of an engine's file; one that is damaged is removed, and sampled again."""
    try:
        return read_header(path)
    except InputError as error:
        print(printable(f"{error}: sampling it again"), file=sys.stderr, flush=True)
        path.unlink()
        return None
