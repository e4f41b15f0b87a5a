"""What each rank runs in the tests against transformers."""

from pathlib import Path
from typing import Any

import torch

from megatron_davinci.config import Recipe, parse_recipe
from megatron_davinci.core.build_trainer import build_trainer
from megatron_davinci.core.groups import model_parallel, world
from megatron_davinci.core.next_token import next_token_batch
from megatron_davinci.core.optimizer import build_optimizer
from megatron_davinci.data.batches import RunBatches
from megatron_davinci.models.config import load_model_config
from megatron_davinci.testing.gather import gather_gradients
from megatron_davinci.testing.logits import pack_documents_for_logits, packed_logits
from megatron_davinci.train.checkpoint.manager import CheckpointManager
from megatron_davinci.train.loop import train
from megatron_davinci.weights.paths import latest_checkpoint


def run(values: dict[str, Any]) -> None:
    """Train a recipe."""
    train(parse_recipe(values))


def logits(
    recipes: list[dict[str, Any]], documents: list[list[int]], trained: bool = False
) -> list[list[torch.Tensor]]:
    """Per recipe, logits of packed documents in one process: by its first weights and, if asked, its checkpoint's."""
    with world():
        return [_logits(parse_recipe(values), documents, trained) for values in recipes]


def _logits(recipe: Recipe, documents: list[list[int]], trained: bool) -> list[torch.Tensor]:
    model, stage = load_model_config(recipe.model), recipe.stage(0)
    with model_parallel(stage, recipe.seed) as device:
        trainer = build_trainer(recipe, stage, model, device)
        found = [packed_logits(trainer, pack_documents_for_logits(documents))]
        if trained:
            optimizer = build_optimizer(stage.megatron, trainer.chunks)
            CheckpointManager(recipe, model, trainer.chunks, optimizer).load(
                latest_checkpoint(Path(recipe.checkpoint.dir))
            )
            found.append(packed_logits(trainer, pack_documents_for_logits(documents)))
        return [scores[:, : model.vocab_size] for scores in found if scores is not None]


def gradients(recipes: list[dict[str, Any]]) -> list[tuple[float, dict[str, torch.Tensor]]]:
    """Per recipe, loss and gradients of its first batch, by its first weights."""
    with world():
        return [_gradients(parse_recipe(values)) for values in recipes]


def _gradients(recipe: Recipe) -> tuple[float, dict[str, torch.Tensor]]:
    batches = RunBatches(recipe).stages[0]
    with model_parallel(batches.recipe, recipe.seed) as device:
        trainer = build_trainer(recipe, batches.recipe, load_model_config(recipe.model), device)
        loss = trainer.gradients(next_token_batch(batches, 0, device))["loss"]
        return loss, gather_gradients(trainer)
