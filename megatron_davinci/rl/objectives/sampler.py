"""The rollouts of a step by an engine: prompts of the recipe, answered by the present policy, as a file to replay.

What is drawn depends on seed, step and prompt alone. A run that was interrupted therefore finds, or writes again, the
same file. An engine with weights of its own tells their fingerprint; a file whose weights the run does not know goes.

With max_lag 1 the next step's prompts are asked while this step trains. Their answers are on disk before a checkpoint
is, so that a run that goes on from it trains on the same.
"""

import sys
import time
from dataclasses import dataclass
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
            sampled = self._write(step, self._at(step), weights, found, time.monotonic() - started)
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
        return self._write(ahead.step, ahead.policy_step, ahead.weights, found, time.monotonic() - ahead.started)

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

    def _write(self, step: int, policy_step: int, weights: str | None, found: Responses, seconds: float) -> Sampled:
        source, documents = self._inputs.prompt_source, self._inputs.prompt_source.prompts(step)
        specs = list(chain.from_iterable(document.specs for document in documents))
        end = self._inputs.answer_end
        responses = flatten(found)
        if end is not None:  # an engine of another's may not look for it
            responses = [[end.cut(response) for response in branch] for branch in responses]
        groups = [Group(spec, branch) for spec, branch in zip(specs, responses, strict=True)]
        if self._reference is not None:
            with self._timers("reference"):
                groups = self._reference.score(source, documents, groups)
        with sync_errors():
            if is_main_rank():
                self._write_file(step, policy_step, weights, groups)
        return Sampled(sum(len(each.tokens) + each.cut_tokens for group in groups for each in group.responses), seconds)

    def _write_file(self, step: int, policy_step: int, weights: str | None, groups: list[Group]) -> None:
        if self._inputs.options.graded_when_sampled:
            with self._timers("grading"):
                groups = self._inputs.prompt_source.grade(groups)
        at, engine = self._at(step), self._inputs.options.rollouts.engine
        header: dict[str, Any] = {"step": at, "policy_step": policy_step, "tokenizer": self._inputs.replay.tokenizer}
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


def _header_of(path: Path) -> dict[str, Any] | None:
    """The header of an engine's file; one that is damaged is removed, and sampled again."""
    try:
        return read_header(path)
    except InputError as error:
        print(printable(f"{error}: sampling it again"), file=sys.stderr, flush=True)
        path.unlink()
        return None
