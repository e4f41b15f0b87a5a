"""A run from its recipe: build or resume, one step after the other, save."""

import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from data_prep import InputError, WorkFailed
from data_prep.io.errors import is_full_disk, printable
from megatron_davinci.config import Recipe, StageRecipe
from megatron_davinci.core.adam import reset_moments
from megatron_davinci.core.build import transformer_config
from megatron_davinci.core.build_trainer import build_trainer
from megatron_davinci.core.groups import (
    TIMEOUT,
    all_gather_object,
    broadcast_object,
    is_main_rank,
    model_parallel,
    sync_errors,
    world,
)
from megatron_davinci.core.objective import Objective
from megatron_davinci.core.optimizer import build_optimizer, gathered_weights, set_hyperparameters
from megatron_davinci.core.step import GlobalBatch, StepResult, Trainer
from megatron_davinci.core.transformer_impl import check_transformer_impl
from megatron_davinci.data.ledger import Ledger
from megatron_davinci.train.checkpoint.manager import CheckpointManager
from megatron_davinci.train.held_out_loss import held_out_losses
from megatron_davinci.train.metrics import Metrics
from megatron_davinci.train.prepare import RunState, doubts_about, prepare_run
from megatron_davinci.train.run_lock import one_writer
from megatron_davinci.train.sample_answers import SampleAnswers
from megatron_davinci.train.signals import StopRequest
from megatron_davinci.train.stragglers import slowest_rank
from megatron_davinci.train.watchdog import Watchdog, store_of_its_own
from megatron_davinci.weights.checkpoint_files import altered_weights
from megatron_davinci.weights.paths import latest_checkpoint


def train(recipe: Recipe, trial_steps: int | None = None) -> int:
    """Run a recipe from its latest checkpoint, to its end or to a stage with another layout. Raises InputError.

    Returns the number of the signal that ended it before, 0 for none.

    `trial_steps`: only so many, and nothing is saved.
    """
    directory = Path(recipe.checkpoint.dir)
    latest = latest_checkpoint(directory)
    run = prepare_run(recipe)
    if _is_finished(run):
        return 0
    for each in run.batches.stages:
        trees = each.recipe.objective.grows_trees or bool(recipe.report.prompts)
        check_transformer_impl(each.recipe.megatron, run.model, trees)
        transformer_config(run.model, each.recipe.megatron)  # what Megatron refuses, it refuses before the first step
    timeout = _collective_timeout(recipe)
    with world(timeout), one_writer(directory):
        _check_same_weights(recipe)
        run = _as_it_is_now(run, latest_checkpoint(directory) != latest)
        if _is_finished(run):
            return 0
        if is_main_rank():
            for doubt in doubts_about(run):
                print(f"warning: {doubt}", file=sys.stderr, flush=True)
        run = with_whole_weights(run)
        stage = run.batches.stages[run.stage].recipe
        with model_parallel(stage, recipe.seed, timeout) as device:
            trainer = build_trainer(recipe, stage, run.model, device, unset=run.checkpoint is not None)
            loop = TrainLoop(run, trainer, stage, trial_steps)
            try:
                end = loop.run()
            finally:
                loop.close()
            if end < run.batches.num_steps and is_main_rank() and trial_steps is None:
                said = _stopped(loop.stopped_by, end) if loop.stopped_by else _what_comes_next(run, end)
                print(said, file=sys.stderr, flush=True)
            elif is_main_rank() and trial_steps is None:
                print(f"{directory} is done after step {end}. Next: {_next(directory)}", file=sys.stderr, flush=True)
    return loop.stopped_by if end < run.batches.num_steps else 0


def _check_same_weights(recipe: Recipe) -> None:
    """Raise InputError on every rank where ranks found different weights under a name of the hub."""
    found = set(all_gather_object(str(recipe.init_from)))
    if len(found) > 1:
        raise InputError(f"ranks found {' and '.join(sorted(found))} for init_from: name a revision, OWNER/NAME@COMMIT")


def _as_it_is_now(run: RunState, has_changed: bool) -> RunState:
    """The run itself, or looked at again by all ranks where any saw another run's checkpoint come meanwhile."""
    if len(set(all_gather_object((run.step, has_changed)))) == 1 and not has_changed:
        return run
    with sync_errors():
        return prepare_run(run.recipe)


def _is_finished(run: RunState) -> bool:
    finished = run.step == run.batches.num_steps
    if finished:
        print(f"{run.recipe.checkpoint.dir} is finished after step {run.step}", file=sys.stderr)
    return finished


def _collective_timeout(recipe: Recipe) -> timedelta:
    """Longer than the watchdog takes to name a rank: those that wait for it must not give up before."""
    seconds = recipe.fault_tolerance.watchdog_timeout
    return TIMEOUT if seconds is None else max(TIMEOUT, timedelta(seconds=2 * seconds))


def with_whole_weights(run: RunState) -> RunState:
    """The run itself or, where its checkpoint's weights are altered, as it was at an earlier one.

    All ranks share the work of looking. Raises InputError where no checkpoint is left.
    """
    while run.checkpoint is not None:
        rank, size = dist.get_rank(), dist.get_world_size()
        shares = all_gather_object(altered_weights(run.checkpoint, rank, size))
        altered = sorted(name for share in shares for name in share)
        if not altered:
            break
        if is_main_rank():
            print(printable(f"{run.checkpoint / altered[0]} is altered: going back"), file=sys.stderr, flush=True)
        run = prepare_run(run.recipe, run.checkpoint.name)
    return run


class TrainLoop:
    """The steps of the stages that share the current layout."""

    def __init__(self, run: RunState, trainer: Trainer, stage: StageRecipe, trial_steps: int | None) -> None:
        self._run, self._trainer, self._is_trial = run, trainer, trial_steps is not None
        self._optimizer = build_optimizer(stage.megatron, trainer.chunks)
        self._checkpoints = CheckpointManager(run.recipe, run.model, trainer.chunks, self._optimizer)
        self._ledger = Ledger(run.ledger)
        self._end = broadcast_object(run.find_end())  # inputs may arrive while ranks look for them
        if trial_steps is not None:
            self._end = min(self._end, run.step + trial_steps)
        stages = range(run.stage, run.last_stage + 1)
        self._objectives: dict[int, Objective] = {index: run.inputs[index].start(trainer) for index in stages}
        for index, objective in self._objectives.items():
            objective.load_state(run.objectives.get(str(index), {}))
            objective.resume(run.step)
        self._answers = SampleAnswers(run, trainer, stages)
        self._skipped, self._saved = run.skipped, run.step
        self._metrics: Metrics | None = None
        self.stopped_by = 0
        """The signal that ended the run before its end, 0 for none."""

    def run(self) -> int:
        """Go on from the latest checkpoint to the end of the last stage in this layout, or as far as rollouts go.

        Returns the number of steps done.
        """
        run = self._run
        if run.checkpoint is not None:
            self._checkpoints.load(run.checkpoint)
        if is_main_rank():
            self._metrics = Metrics(run, self._end, dist.get_world_size())
            if run.step > 0:
                print(f"resuming {self._checkpoints.directory} after step {run.step}", file=sys.stderr, flush=True)
            for stage in run.batches.stages:
                stage.keep_plan()
        stop, step = StopRequest(self._trainer.device), run.step
        with stop.install_handlers(), self._watched() as moved_on:
            try:
                if step == 0 and not self._is_trial:
                    self._show_answers(step)
                while step < self._end and not self.stopped_by:
                    moved_on(step)
                    self._step(step)
                    self._evaluate(step)
                    step += 1
                    with self._trainer.timers("checkpoint"):
                        self._checkpoints.poll()
                    self.stopped_by = stop.on_any_rank()
                    self._save_when_due(step)
            except (InputError, WorkFailed):  # rollouts that do not fit, or cannot be had: what was done before stays
                self._save(step)
                self._checkpoints.finish()
                raise
            except FloatingPointError:  # on every rank
                self._checkpoints.finish()
                self._report(step)
                raise
            except OSError as fault:  # metrics find a full disk as well as checkpoints do
                if not is_full_disk(fault):
                    raise
                raise self._checkpoints.not_written(fault) from None
            self._checkpoints.finish()
            if self.stopped_by:
                self._report(step)
        if self._metrics is not None:
            self._metrics.close()
        return step

    def close(self) -> None:
        """End what objectives have started."""
        for objective in self._objectives.values():
            objective.close()

    @contextmanager
    def _watched(self) -> Iterator[Callable[[int], None]]:
        """A watchdog beside the loop, if the recipe wants one; gives what tells it of the next step."""
        seconds = self._run.recipe.fault_tolerance.watchdog_timeout
        if seconds is None:
            yield lambda step: None
            return
        store = store_of_its_own(dist.distributed_c10d._get_default_store())
        stacks = self._checkpoints.directory / "stacks"
        watchdog = Watchdog(store, dist.get_rank(), dist.get_world_size(), seconds, stacks)
        self._trainer.timers.listener = lambda phase: watchdog.at(phase=phase)
        with watchdog.watching():
            yield lambda step: watchdog.at(step=step)

    def _step(self, step: int) -> None:
        run = self._run
        index, number = run.batches.at(step)
        stage = run.batches.stages[index]
        if number == 0 and run.recipe.data.stages[index].schedule is not None and step > 0:
            reset_moments(self._optimizer)
        if number == 0 and index - 1 in self._objectives:
            self._objectives[index - 1].close()  # its engine makes room for this stage's
        started = time.monotonic()
        lr = run.learning_rates.at(index, number)
        set_hyperparameters(self._optimizer, lr)
        global_batch = self._objectives[index].batch(number)
        norms = self._loss_norms(global_batch)
        result = self._trainer.step(self._optimizer, global_batch)
        self._count_skipped(result)
        for epoch, tally in result.counts.tallies.items():
            self._ledger.add(stage.name, epoch, tally)
        for epoch in stage.epochs_finished_by(number):
            self._ledger.check(stage.name, epoch, stage.tally_of_an_epoch())
        phases = self._trainer.timers.take()
        consumed = {"epoch": stage.epochs_after(number), "consumed_tokens": self._ledger.tokens}
        facts = {**consumed, **global_batch.metrics(result.sums), **norms}
        facts |= slowest_rank(phases, self._trainer.device)
        if self._metrics is not None:
            seconds = time.monotonic() - started - phases.get("component_norms", 0.0)
            if result.skipped:
                facts = {**facts, "skipped": 1}
            self._metrics.report(step + 1, stage.name, lr, result, facts, seconds, phases)

    def _count_skipped(self, result: StepResult) -> None:
        """Raises FloatingPointError, on every rank, where too many steps in a row were skipped."""
        self._skipped = self._skipped + 1 if result.skipped else 0
        if self._skipped > self._run.recipe.fault_tolerance.max_skipped_steps:
            raise FloatingPointError(
                f"the loss is {result.loss}, the gradient norm {result.grad_norm}, {self._skipped} step(s) in a row: "
                "nothing of this one is saved; lower the learning rate, and start again from the last checkpoint, or "
                "raise fault_tolerance.max_skipped_steps"
            )

    def _loss_norms(self, batch: GlobalBatch) -> dict[str, float]:
        """Gradient norm of each loss by itself, where the batch says that they are to be measured."""
        if not batch.losses:
            return {}
        trainer = self._trainer
        with trainer.timers.alone("component_norms"):
            return {
                f"grad_norm_{name}": trainer.gradient_norm(self._optimizer, alone())
                for name, alone in batch.losses.items()
            }

    def _evaluate(self, step: int) -> None:
        """Held-out loss of each of the stage's corpora, every so many steps and at the stage's end."""
        run, evaluation = self._run, self._run.recipe.evaluation
        index, batch = run.batches.at(step)
        at_end = batch + 1 == run.batches.stages[index].num_batches
        if evaluation is None or ((step + 1) % evaluation.eval_interval and not at_end):
            return
        with self._trainer.timers("evaluation"):
            losses = held_out_losses(self._trainer, run.batches, index)
        if self._metrics is not None:
            self._metrics.report_evaluation(step + 1, losses)

    def _save_when_due(self, step: int) -> None:
        """A checkpoint every so many steps, and where these processes end."""
        if step % self._run.recipe.checkpoint.save_interval == 0 or step == self._end or self.stopped_by:
            self._save(step)

    def _save(self, step: int) -> None:
        if self._is_trial or step == self._saved:
            return
        self._saved = step
        if not self.stopped_by:  # who stops a run wants its checkpoint first
            for objective in self._objectives.values():
                objective.settle()
        with self._trainer.timers("checkpoint"), gathered_weights(self._trainer.chunks):
            self._checkpoints.save(step, {**self._run.identity, "step": step, **self._progress()})
        if not self.stopped_by:  # who stops a run wants its checkpoint first
            self._show_answers(step)
            self._report(step)

    def _show_answers(self, step: int) -> None:
        """What the model says to the same prompts as before; where it cannot, that is said."""
        lines: list[dict[str, Any]] = []
        with self._trainer.timers("answers"), self._only_said("prompts could not be answered"):
            lines = self._answers.after(step)
        if self._metrics is not None:
            self._metrics.report_answers(lines)

    def _report(self, step: int) -> None:
        if self._metrics is not None:
            with self._trainer.timers("report"):
                self._metrics.report_checkpoint(step)

    @contextmanager
    def _only_said(self, what: str) -> Iterator[None]:
        """Say what is wrong on every rank, and go on: it is nothing that training needs."""
        try:
            yield
        except (InputError, FloatingPointError) as error:
            if is_main_rank():
                print(printable(f"{what}: {error}"), file=sys.stderr, flush=True)

    def _progress(self) -> dict[str, Any]:
        kept = {str(index): objective.state() for index, objective in self._objectives.items()}
        progress = {"ledger": self._ledger.entries(), "skipped": self._skipped}
        return {**progress, "objectives": {index: state for index, state in kept.items() if state}}


def _stopped(number: int, step: int) -> str:
    by = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    hint = "" if number == signal.SIGINT else " (in a job script: requeue it)"
    return f"stopped by {by}: step {step} is done and saved; the same command goes on from there{hint}"


def _next(directory: Path) -> str:
    """What a person does with a finished run."""
    run = shlex.quote(str(directory))
    return f"davinci report {run}; davinci convert megatron-to-hf {run} OUT"


def _what_comes_next(run: RunState, end: int) -> str:
    if end < run.batches.first_step(run.last_stage + 1):
        missing = run.inputs[run.batches.stage_of(end)].missing(end)
        return f"step {end} is done and saved; {missing}; then start the same recipe again"
    stage, following = (run.batches.stages[index].recipe for index in (run.last_stage, run.last_stage + 1))
    old, new = stage.megatron.given, following.megatron.given
    changed = {key: value for key, value in new.items() if old.get(key) != value}
    changed |= dict.fromkeys(old.keys() - new.keys(), "its default")
    fields = ", ".join(f"{key} {value}" for key, value in changed.items())
    return (
        f"stage {stage.name} is done and saved; stage {following.name} has another layout ({fields}): start the same "
        f"recipe again, on a multiple of {following.layout.ranks_per_replica} processes"
    )
