"""Everything that can be refused is refused here, before a process group is up. Torch-free."""

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from xxhash import xxh3_64

from data_prep import InputError
from data_prep.corpus import tokenizer_file, tokenizer_fingerprint
from data_prep.files import nearest_existing, read_json
from megatron_davinci.checkpoint.files import PROGRESS_FILE
from megatron_davinci.checkpoint.recovery import newest_whole
from megatron_davinci.data.batches import GlobalBatches
from megatron_davinci.models.config import ModelConfig, load_model_config
from megatron_davinci.recipe import Recipe, StageRecipe
from megatron_davinci.rmt.inputs import ReinforcementInputs, identity_of_asks, open_inputs
from megatron_davinci.train.schedule import LearningRates

_WHAT_IDENTITY_IS = {
    "another model": "model",
    "other data, batch size, seed or objective": "order",
    "another use_distributed_optimizer or bf16": "optimizer",
}


@dataclass(frozen=True)
class Run:
    """A recipe whose inputs are there and fit; `step` of its `batches.num_steps` are done."""

    recipe: Recipe
    model: ModelConfig
    batches: GlobalBatches
    learning_rates: LearningRates
    reinforcement: list[ReinforcementInputs | None]
    identity: dict[str, Any]
    checkpoint: Path | None
    step: int
    ledger: list[dict[str, Any]]
    skipped: int
    """Steps in a row, up to this one, that were skipped for a number that is not finite."""

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

    @property
    def end(self) -> int:
        """The number of steps after which these processes are done: for their layout, or for want of rollouts."""
        for index in range(self.stage, self.last_stage + 1):
            inputs, following = self.reinforcement[index], self.batches.first_step(index + 1)
            if inputs is not None and isinstance(inputs.asker.options.rollouts, str):
                first = inputs.replay.first_missing(max(self.step, self.batches.first_step(index)), following)
                if first < following:
                    return first
        return self.batches.first_step(self.last_stage + 1)


def prepare(recipe: Recipe, damaged: str | None = None) -> Run:
    """A run whose next step can be taken by the processes that there are. Raises InputError.

    `damaged`: a checkpoint whose weights are known to be so; the run goes on from one before it.
    """
    run = inspect(recipe, damaged)
    if run.step < run.batches.num_steps:
        check_number_of_ranks(run.batches.stages[run.stage].recipe)
        check_rollouts(run)
    return run


def inspect(recipe: Recipe, damaged: str | None = None) -> Run:
    """Open and check all inputs of a run, and find out how far it is. Raises InputError."""
    batches = GlobalBatches(recipe)
    model = load_model_config(recipe.model)
    check_vocabulary(batches, model)
    check_tokenizer(recipe, batches)
    reinforcement = [open_inputs(recipe, batches, index, model) for index in range(len(batches.stages))]
    identity = {
        "num_steps": batches.num_steps,
        "order": order_fingerprint(recipe, batches, reinforcement),
        "model": model.architecture(),
        "optimizer": batches.stages[0].recipe.optimizer_kind,
    }
    check_directory(Path(recipe.checkpoint.dir))
    if recipe.wandb is not None and find_spec("wandb") is None:
        raise InputError("the recipe reports to wandb, which is not installed: pip install wandb, or leave wandb out")
    checkpoint = newest_whole(Path(recipe.checkpoint.dir), damaged)
    progress = read_progress(checkpoint, identity)
    return Run(
        recipe=recipe,
        model=model,
        batches=batches,
        learning_rates=LearningRates(recipe, [stage.num_batches for stage in batches.stages]),
        reinforcement=reinforcement,
        identity=identity,
        checkpoint=checkpoint,
        step=progress["step"],
        ledger=progress["ledger"],
        skipped=progress.get("skipped", 0),
    )


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
    if not {"step", "ledger", *identity} <= progress.keys():
        raise InputError(f"{checkpoint / PROGRESS_FILE} is of another version: name another one in {directory}/latest")
    other = [name for name, key in _WHAT_IDENTITY_IS.items() if progress[key] != identity[key]]
    if other:
        raise InputError(
            f"{directory} was trained with {' and '.join(other)}: give the recipe it was started with, or another "
            "checkpoint.dir"
        )
    return progress


def order_fingerprint(recipe: Recipe, batches: GlobalBatches, reinforcement: list[ReinforcementInputs | None]) -> str:
    """Identity of everything that settles which tokens come at which step; no layout of ranks is part of it."""
    asked = [
        identity_of_asks(inputs, stage.recipe.objective)
        for inputs, stage in zip(reinforcement, batches.stages, strict=True)
    ]
    settled = [recipe.seed, [stage.order for stage in batches.stages], asked]
    return xxh3_64(repr(settled).encode()).hexdigest()


def check_vocabulary(batches: GlobalBatches, model: ModelConfig) -> None:
    """Raise InputError when the corpora's tokenizer has ids that the model has no embedding for."""
    needed = batches.tokenizer["vocab_size"]
    if needed > model.vocab_size:
        raise InputError(
            f"the corpora's tokenizer has ids up to {needed - 1}, the model's vocab_size is {model.vocab_size}: "
            f"choose a model with at least {needed}, or tokenize with the model's own tokenizer"
        )


def check_tokenizer(recipe: Recipe, batches: GlobalBatches) -> None:
    """Raise InputError when the tokenizer that would go into checkpoints is not the one that made the corpora."""
    source = recipe.tokenizer_directory
    if source is None or batches.tokenizer["kind"] != "huggingface":
        return  # an export then names one
    if tokenizer_fingerprint(tokenizer_file(source)) != batches.tokenizer["fingerprint"]:
        raise InputError(
            f"{source} has another tokenizer than the one that made the corpora: set tokenizer to that one's "
            "directory, or tokenize again"
        )


def check_rollouts(run: Run) -> None:
    """Raise InputError where the next step needs rollouts that are not there."""
    inputs = run.reinforcement[run.stage]
    main = os.environ.get("RANK", "0") == "0"  # another rank may see a new file later, and waits for the main one
    if main and inputs is not None and run.end == run.step:
        raise InputError(
            f"step {run.step} needs rollouts that are not there: {inputs.replay.file(run.step)}; davinci rmt ask "
            "writes the prompts that they answer"
        )


def check_number_of_ranks(stage: StageRecipe) -> None:
    """Raise InputError unless the processes that torchrun has started can be dealt out over the stage's layout."""
    ranks, needed = int(os.environ.get("WORLD_SIZE", "1")), stage.ranks_per_replica
    if ranks % needed:
        raise InputError(
            f"{ranks} process(es) cannot hold tensor {stage.tensor_parallel_size} x pipeline "
            f"{stage.pipeline_parallel_size} x context {stage.context_parallel_size} ranks: start a multiple of "
            f"{needed}, as with torchrun --nproc-per-node {needed}"
        )
