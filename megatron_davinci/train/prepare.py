"""Everything that can be refused is refused here, before a process group is up. Torch-free."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from xxhash import xxh3_64

from data_prep import InputError
from data_prep.io.files import nearest_existing, read_json
from megatron_davinci.config import Recipe
from megatron_davinci.config.processes import check_number_of_ranks, process_rank
from megatron_davinci.data.batches import RunBatches
from megatron_davinci.data.checks import check_tokenizer, check_vocabulary
from megatron_davinci.data.ledger import is_ledger
from megatron_davinci.data.objective import ObjectiveInputs, open_inputs
from megatron_davinci.models.config import ModelConfig, load_model_config
from megatron_davinci.train.checkpoint.recovery import newest_whole
from megatron_davinci.train.schedule import LearningRates
from megatron_davinci.weights.checkpoint_files import PROGRESS_FILE

_WHAT_IDENTITY_IS = {
    "another model": "model",
    "other data, length, batch size, seed or objective": "order",
    "another use_distributed_optimizer or bf16": "optimizer",
}


@dataclass(frozen=True)
class RunState:
    """A recipe whose inputs are there and fit; `step` of its `batches.num_steps` are done."""

    recipe: Recipe
    model: ModelConfig
    batches: RunBatches
    learning_rates: LearningRates
    inputs: list[ObjectiveInputs]
    """Of the objective of each stage."""
    identity: dict[str, Any]
    checkpoint: Path | None
    step: int
    ledger: list[dict[str, Any]]
    skipped: int
    """Steps in a row, up to this one, that were skipped for a number that is not finite."""
    objectives: dict[str, dict[str, Any]]
    """What the objective of a stage has kept, by the stage's number."""

    @property
    def stage(self) -> int:
        """The stage of the next step."""
        return self.batches.stage_of(self.step)

    @property
    def last_stage(self) -> int:
        """The last of the stages from `stage` on that train in the same layout: these processes' work."""
        stages = self.batches.stages
        last = self.stage
        while last + 1 < len(stages) and stages[last + 1].recipe.megatron == stages[last].recipe.megatron:
            last += 1
        return last

    def find_end(self) -> int:
        """The number of steps after which these processes are done: for their layout, or for want of inputs.

        It looks at the files of inputs, which may come while a run goes on.
        """
        for index in range(self.stage, self.last_stage + 1):
            following = self.batches.first_step(index + 1)
            first = self.inputs[index].first_missing(max(self.step, self.batches.first_step(index)), following)
            if first < following:
                return first
        return self.batches.first_step(self.last_stage + 1)


def prepare_run(recipe: Recipe, damaged: str | None = None) -> RunState:
    """A run whose next step can be taken by the processes that there are. Raises InputError.

    `damaged`: a checkpoint whose weights are known to be so; the run goes on from one before it.
    """
    run = inspect_run(recipe, damaged)
    if run.step < run.batches.num_steps:
        check_number_of_ranks(run.batches.stages[run.stage].recipe)
        check_inputs(run)
    return run


def inspect_run(recipe: Recipe, damaged: str | None = None) -> RunState:
    """Open and check all inputs of a run, and find out how far it is. Raises InputError."""
    batches = RunBatches(recipe)
    model = load_model_config(recipe.model)
    check_vocabulary(batches, model)
    check_tokenizer(recipe, batches)
    inputs = [open_inputs(recipe, batches, index, model) for index in range(len(batches.stages))]
    identity = {
        "num_steps": batches.num_steps,
        "order": order_fingerprint(recipe, batches, inputs),
        "model": model.architecture(),
        "optimizer": batches.stages[0].recipe.optimizer_kind,
    }
    check_directory(Path(recipe.checkpoint.dir))
    if recipe.wandb is not None and find_spec("wandb") is None:
        raise InputError("the recipe reports to wandb, which is not installed: pip install wandb, or leave wandb out")
    if recipe.report.prompts:
        for each in inputs:
            each.find_tokenizer()
    checkpoint = newest_whole(Path(recipe.checkpoint.dir), damaged)
    progress = read_progress(checkpoint, identity)
    return RunState(
        recipe=recipe,
        model=model,
        batches=batches,
        learning_rates=LearningRates(recipe, [stage.num_batches for stage in batches.stages]),
        inputs=inputs,
        identity=identity,
        checkpoint=checkpoint,
        step=progress["step"],
        ledger=progress["ledger"],
        skipped=progress.get("skipped", 0),
        objectives=progress.get("objectives", {}),
    )


@dataclass(frozen=True)
class MissingInput:
    """What a recipe names under `key`, and is not on this disk."""

    kind: Literal["corpus", "plan", "weights", "tokenizer"]
    path: str
    key: str

    def __str__(self) -> str:
        return f"{self.kind} {self.path} ({self.key})"


def missing_inputs(recipe: Recipe) -> list[MissingInput]:
    """Every corpus, plan, source of weights and tokenizer that is not here."""
    wanted: list[MissingInput] = []
    for index, stage in enumerate(recipe.data.stages):
        place = f"data.stages.{index}"
        wanted += [MissingInput("corpus", f"{blend.corpus}.idx", f"{place}.blend") for blend in stage.blend]
        wanted += [MissingInput("plan", stage.plan, f"{place}.plan")] if stage.plan is not None else []
        sources = recipe.stage(index).objective.sources_of_weights()
        wanted += [MissingInput("weights", path, key) for key, path in sources.items()]
    if recipe.init_from is not None:
        wanted.append(MissingInput("weights", recipe.init_from, "init_from"))
    if recipe.tokenizer is not None:
        wanted.append(MissingInput("tokenizer", recipe.tokenizer, "tokenizer"))
    return [each for each in dict.fromkeys(wanted) if not Path(each.path).exists()]


def doubts_about(run: RunState) -> list[str]:
    """What a run may do, and its owner should know: one sentence each."""
    doubts = [doubt for inputs in run.inputs for doubt in inputs.doubts()]
    named = run.recipe.tokenizer
    if named is not None and not Path(named).is_dir():
        doubts.append(
            f"tokenizer is {named}, which is no directory: checkpoints and exports will hold none; name one with its "
            "tokenizer.json"
        )
    for stage in run.batches.stages:
        longest, batch = run.model.max_position_embeddings, stage.recipe.batch
        if stage.recipe.seq_length > longest:
            doubts.append(
                f"stage {stage.name}: seq_length is {stage.recipe.seq_length:,}, and the model's "
                f"max_position_embeddings are {longest:,}: documents beyond have positions that it has not seen"
            )
        documents = stage.tally_of_an_epoch().documents
        if batch.unit == "samples" and batch.global_batch_size > documents:
            doubts.append(
                f"stage {stage.name}: a batch of {batch.global_batch_size:,} documents is larger than an epoch's "
                f"{documents:,}: with more epochs a step sees some several times, else the only one is smaller"
            )
    return doubts


def check_directory(directory: Path) -> None:
    """Raise InputError where a run's directory can be neither written to nor made."""
    nearest = nearest_existing(directory)
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError(f"checkpoint.dir is {directory}, and {nearest} cannot be written to: name another directory")


def read_progress(checkpoint: Path | None, identity: dict[str, Any]) -> dict[str, Any]:
    """Progress of a checkpoint, or of none. InputError when it belongs to another recipe."""
    if checkpoint is None:
        return {"step": 0, "ledger": []}
    directory, progress = checkpoint.parent, read_json(checkpoint / PROGRESS_FILE)
    if not isinstance(progress, dict) or not {"step", "ledger", *identity} <= progress.keys():
        raise InputError(f"{checkpoint / PROGRESS_FILE} is of another version: name another one in {directory}/latest")
    step, last = progress["step"], progress.get("num_steps")
    numbers = type(step) is int and type(last) is int and 0 <= step <= last
    if not numbers or not is_ledger(progress["ledger"], step):
        raise InputError(f"{checkpoint / PROGRESS_FILE} is damaged: name another checkpoint in {directory}/latest")
    other = [name for name, key in _WHAT_IDENTITY_IS.items() if progress[key] != identity[key]]
    if other:
        raise InputError(
            f"{directory} was trained with {' and '.join(other)}: give the recipe it was started with, or another "
            "checkpoint.dir"
        )
    return progress


def order_fingerprint(recipe: Recipe, batches: RunBatches, inputs: Sequence[ObjectiveInputs]) -> str:
    """Identity of everything that determines which tokens come at which step; no layout of ranks is part of it."""
    prompts = [each.fingerprint for each in inputs]
    order = [recipe.seed, [stage.order for stage in batches.stages], prompts]
    return xxh3_64(repr(order).encode()).hexdigest()


def check_inputs(run: RunState) -> None:
    """Raise InputError where the next step needs inputs that are not there."""
    # another rank may see a new file later, and waits for the main one
    if process_rank() == 0 and run.find_end() == run.step:
        raise InputError(run.inputs[run.stage].missing(run.step))
