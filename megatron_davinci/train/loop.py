"""A run from its recipe: build or resume, one step after the other, save."""

import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from xxhash import xxh3_64

from data_prep import InputError
from data_prep.corpus import tokenizer_file, tokenizer_fingerprint
from megatron_davinci.checkpoint.manager import CheckpointManager
from megatron_davinci.data.batches import GlobalBatches
from megatron_davinci.models.build import build_model, transformer_config
from megatron_davinci.models.config import ModelConfig, load_model_config
from megatron_davinci.models.initialize import draw_weights, load_huggingface_weights
from megatron_davinci.recipe import Recipe
from megatron_davinci.train.metrics import Metrics
from megatron_davinci.train.optimizer import build_optimizer, data_parallel, set_learning_rate
from megatron_davinci.train.parallel import is_main_rank, model_parallel, world
from megatron_davinci.train.schedule import learning_rate
from megatron_davinci.train.step import Trainer

_WHAT_IDENTITY_IS = {"another model": "model", "other data, batch size or seed": "order"}


def train(recipe: Recipe) -> None:
    """Run a recipe to its end, from its latest checkpoint where it has one. Raises InputError on bad input."""
    batches = GlobalBatches(recipe)
    model_config = load_model_config(recipe.model)
    check_vocabulary(batches, model_config)
    check_tokenizer(recipe, batches)
    with world(), layout_of(recipe) as device:
        trainer = build_trainer(recipe, model_config, device)
        optimizer = build_optimizer(recipe, trainer.model)
        checkpoints = CheckpointManager(recipe, model_config, trainer.model, optimizer)
        identity = {
            "num_steps": batches.num_steps,
            "order": order_fingerprint(recipe, batches),
            "model": repr(model_config),
        }
        done = resume_step(checkpoints, identity)
        metrics = Metrics(checkpoints.directory, done, batches.num_steps) if is_main_rank() else None
        for step in range(done, batches.num_steps):
            started = time.monotonic()
            lr = learning_rate(recipe.schedule, step, batches.num_steps)
            set_learning_rate(optimizer, lr)
            stage, sequences = batches.at(step)
            loss, grad_norm = trainer.step(optimizer, stage, sequences)
            if metrics is not None:
                tokens = sum(span.length for sequence in sequences for span in sequence)
                values = {"loss": loss, "lr": lr, "grad_norm": grad_norm}
                metrics.report(step + 1, values, tokens, time.monotonic() - started)
            if (step + 1) % recipe.checkpoint.every_steps == 0 or step + 1 == batches.num_steps:
                checkpoints.save(step + 1, {**identity, "step": step + 1})
        if metrics is not None:
            metrics.close()


def layout_of(recipe: Recipe) -> AbstractContextManager[torch.device]:
    """The model-parallel groups that a recipe asks for; gives this rank's device."""
    return model_parallel(recipe.parallel_size("tensor"), recipe.parallel_size("pipeline"), recipe.seed)


def build_trainer(recipe: Recipe, model_config: ModelConfig, device: torch.device) -> Trainer:
    """This rank's model with its first weights, ready to step."""
    config = transformer_config(model_config, recipe.megatron)
    model = build_model(config, model_config)
    if recipe.init_from is None:
        draw_weights(model, model_config, recipe.seed)
    else:
        load_huggingface_weights(model, model_config, Path(recipe.init_from))
    model.to(device)
    return Trainer(
        model=data_parallel(config, model),
        config=config,
        device=device,
        seq_length=recipe.data.seq_length,
        micro_batch_size=recipe.batch.micro_batch_size,
    )


def resume_step(checkpoints: CheckpointManager, identity: dict[str, object]) -> int:
    """Finished steps of the latest checkpoint, 0 where there is none. InputError when it belongs to another recipe."""
    progress = checkpoints.read_progress()
    if progress is None:
        return 0
    other = [name for name, key in _WHAT_IDENTITY_IS.items() if progress[key] != identity[key]]
    if other:
        raise InputError(
            f"{checkpoints.directory} was trained with {' and '.join(other)}: give the recipe it was started with, or "
            "another checkpoint.dir"
        )
    checkpoints.load()
    if is_main_rank():
        print(f"resuming {checkpoints.directory} after step {progress['step']}", file=sys.stderr, flush=True)
    return int(progress["step"])


def order_fingerprint(recipe: Recipe, batches: GlobalBatches) -> str:
    """Identity of everything that settles which tokens come at which step; no layout of ranks is part of it."""
    batch = (recipe.batch.global_size, recipe.batch.unit)
    data = (recipe.data.seq_length, recipe.data.long_documents)
    return xxh3_64(repr([recipe.seed, batch, data, [stage.order for stage in batches.stages]]).encode()).hexdigest()


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
    source = Path(recipe.tokenizer or recipe.model)
    if recipe.tokenizer is None and not (source / "tokenizer.json").is_file():
        return  # an export then names one
    fingerprint = tokenizer_fingerprint(tokenizer_file(source))
    if batches.tokenizer["kind"] == "huggingface" and fingerprint != batches.tokenizer["fingerprint"]:
        raise InputError(
            f"{source} has another tokenizer than the one that made the corpora: set tokenizer to that one's "
            "directory, or tokenize again"
        )
