"""A run from its recipe: build or resume, one step after the other, save."""

import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.transformer.transformer_config import TransformerConfig

from data_prep import InputError
from megatron_davinci.checkpoint.manager import CheckpointManager
from megatron_davinci.data.ledger import Ledger
from megatron_davinci.models.build import build_chunks, check_layers_can_be_built, transformer_config
from megatron_davinci.models.config import ModelConfig
from megatron_davinci.models.gpt import ScoringGPTModel
from megatron_davinci.models.initialize import draw_weights, load_huggingface_weights
from megatron_davinci.recipe import Recipe, StageRecipe
from megatron_davinci.train.adam import forget_moments
from megatron_davinci.train.metrics import Metrics
from megatron_davinci.train.next_token import next_token_batch, next_token_work
from megatron_davinci.train.optimizer import build_optimizer, data_parallel, gathered_weights, set_learning_rate
from megatron_davinci.train.parallel import agreed, is_main_rank, model_parallel, world
from megatron_davinci.train.prepare import Run, prepare
from megatron_davinci.train.reinforcement import PARTS, Reinforcement
from megatron_davinci.train.step import StepResult, Trainer


def train(recipe: Recipe) -> None:
    """Run a recipe from its latest checkpoint, to its end or to a stage with another layout. Raises InputError."""
    run = prepare(recipe)
    if run.step == run.batches.num_steps:
        print(f"{recipe.checkpoint.dir} is finished after step {run.step}", file=sys.stderr)
        return
    stage = run.batches.stages[run.stage].recipe
    for each in run.batches.stages:
        transformer_config(run.model, each.recipe.megatron)  # what Megatron refuses, it refuses before the first step
    check_layers_can_be_built()
    with world(), model_parallel(stage, recipe.seed) as device:
        trainer = build_trainer(recipe, stage, run.model, device)
        end = Loop(run, trainer, stage).run()
        if end < run.batches.num_steps and is_main_rank():
            print(_what_comes_next(run, end), file=sys.stderr, flush=True)


def build_trainer(
    recipe: Recipe,
    stage: StageRecipe,
    model: ModelConfig,
    device: torch.device,
) -> Trainer:
    """This rank's model with its first weights, ready to step."""
    config, chunks = build_model(recipe, stage, model, device)
    return Trainer(data_parallel(config, stage.megatron, chunks), config, device)


def build_model(
    recipe: Recipe, stage: StageRecipe, model: ModelConfig, device: torch.device
) -> tuple[TransformerConfig, list[ScoringGPTModel]]:
    """The chunks of the model that this rank holds, with its first weights."""
    config = transformer_config(model, stage.megatron)
    chunks = build_chunks(config, model)
    if recipe.init_from is None:
        draw_weights(chunks, model, recipe.seed)
    else:
        load_huggingface_weights(chunks, model, Path(recipe.init_from))
    for chunk in chunks:
        chunk.to(device)
    return config, chunks


class Loop:
    """The steps of the stages that share the current layout."""

    def __init__(self, run: Run, trainer: Trainer, stage: StageRecipe) -> None:
        self._run, self._trainer = run, trainer
        self._optimizer = build_optimizer(stage.megatron, trainer.chunks)
        self._checkpoints = CheckpointManager(run.recipe, run.model, trainer.chunks, self._optimizer)
        self._ledger = Ledger(run.ledger)
        self._end = agreed(run.end)  # rollouts may arrive while ranks look for them
        self._reinforcement = {
            index: Reinforcement(run.batches.stages[index], inputs, run.batches.first_step(index))
            for index, inputs in enumerate(run.reinforcement)
            if inputs is not None
        }

    def run(self) -> int:
        """Go on from the latest checkpoint to the end of the last stage in this layout, or as far as rollouts go.

        Returns the number of steps done.
        """
        run = self._run
        if run.step > 0:
            self._checkpoints.load()
        metrics = Metrics(run, self._end, dist.get_world_size()) if is_main_rank() else None
        if metrics is not None:
            if run.step > 0:
                print(f"resuming {self._checkpoints.directory} after step {run.step}", file=sys.stderr, flush=True)
            for stage in run.batches.stages:
                stage.keep_plan()
        for step in range(run.step, self._end):
            try:
                self._step(step, metrics)
            except InputError:  # rollouts that do not fit: what was done before stays
                if step > run.step:
                    self._save(step)
                raise
            self._evaluate(step, metrics)
            self._save_when_due(step + 1)
        if metrics is not None:
            metrics.close()
        return self._end

    def _step(self, step: int, metrics: Metrics | None) -> None:
        run = self._run
        index, batch = run.batches.at(step)
        stage = run.batches.stages[index]
        if batch == 0 and run.recipe.data.stages[index].schedule is not None and step > 0:
            forget_moments(self._optimizer)
        started = time.monotonic()
        lr = run.learning_rates.at(index, batch)
        set_learning_rate(self._optimizer, lr)
        if index in self._reinforcement:
            result, facts = self._reinforce(index, batch)
        else:
            with self._trainer.timers("data"):
                work = next_token_batch(stage, batch, self._trainer.device)
            result, facts = self._trainer.step(self._optimizer, work), {}
        for epoch, tally in result.counts.tallies.items():
            self._ledger.add(stage.name, epoch, tally)
        for epoch in stage.epochs_finished_by(batch):
            self._ledger.check(stage.name, epoch, stage.tally_of_an_epoch())
        if metrics is not None:
            phases = self._trainer.timers.take()
            seconds = time.monotonic() - started - phases.get("component_norms", 0.0)
            metrics.report(step + 1, stage.name, lr, result, facts, seconds, phases)

    def _reinforce(self, index: int, batch: int) -> tuple[StepResult, dict[str, float]]:
        """A step from rollouts; every so often the gradient of each loss is measured by itself before."""
        trainer, every = self._trainer, self._reinforcement[index].component_norms_every
        with trainer.timers("data"):
            self._agree_on_rollouts(index, batch)
            step = self._reinforcement[index].step(batch, trainer.device)
        norms = {}
        if every and batch % every == 0:
            with trainer.timers.alone("component_norms"):
                for part in PARTS:
                    norms[f"grad_norm_{part}"] = trainer.gradient_norm(self._optimizer, step.only(part))
        result = trainer.step(self._optimizer, step.work)
        return result, {**step.metrics(result.sums), **norms}

    def _agree_on_rollouts(self, index: int, batch: int) -> None:
        """Raise InputError on every rank where they see different files: their losses would be of different rows."""
        seen: list[str] = [""] * dist.get_world_size()
        dist.all_gather_object(seen, self._reinforcement[index].rollouts(batch))
        if len(set(seen)) > 1:
            raise InputError(
                f"ranks see different rollouts for step {self._run.batches.first_step(index) + batch}: keep them on a "
                "file system that all share, and let each file appear by rename, once"
            )

    def _evaluate(self, step: int, metrics: Metrics | None) -> None:
        """Held-out loss of each of the stage's corpora, every so many steps and at the stage's end."""
        run, evaluation = self._run, self._run.recipe.evaluation
        index, batch = run.batches.at(step)
        at_end = batch + 1 == run.batches.stages[index].num_batches
        if evaluation is None or ((step + 1) % evaluation.every_steps and not at_end):
            return
        losses = {}
        with self._trainer.timers("evaluation"):
            for name, documents, sequences in run.batches.held_out.sources(run.recipe, index):
                stage = run.batches.stages[index].recipe
                work = next_token_work(documents, sequences, stage, stage.document_alignment, self._trainer.device)
                if work.counts.labels:  # a loss mask may leave none
                    losses[name] = self._trainer.evaluate(work)["loss"]
        if metrics is not None:
            metrics.report_evaluation(step + 1, losses)

    def _save_when_due(self, step: int) -> None:
        """A checkpoint every so many steps, and where these processes end."""
        if step % self._run.recipe.checkpoint.every_steps == 0 or step == self._end:
            self._save(step)

    def _save(self, step: int) -> None:
        with self._trainer.timers("checkpoint"), gathered_weights(self._trainer.chunks):
            self._checkpoints.save(step, {**self._run.identity, "step": step, "ledger": self._ledger.entries()})


def _what_comes_next(run: Run, end: int) -> str:
    inputs = run.reinforcement[run.batches.stage_of(end)]
    if inputs is not None and end < run.batches.first_step(run.last_stage + 1):
        return (
            f"step {end} is done and saved; the next one needs rollouts, {inputs.replay.file(end)}: davinci rmt ask "
            "writes their prompts; then start the same recipe again"
        )
    stage, following = (run.batches.stages[index].recipe for index in (run.last_stage, run.last_stage + 1))
    changed = {key: value for key, value in following.megatron.items() if stage.megatron.get(key) != value}
    changed |= dict.fromkeys(stage.megatron.keys() - following.megatron.keys(), "its default")
    fields = ", ".join(f"{key} {value}" for key, value in changed.items())
    return (
        f"stage {stage.name} is done and saved; stage {following.name} has another layout ({fields}): start the same "
        f"recipe again, on a multiple of {following.ranks_per_replica} processes"
    )
