"""What each rank runs in the tests against transformers."""

from typing import Any

import torch

from megatron_davinci.checkpoint.manager import CheckpointManager
from megatron_davinci.models.config import load_model_config
from megatron_davinci.recipe import parse_recipe
from megatron_davinci.testing.logits import pack_documents_for_logits, packed_logits
from megatron_davinci.train.loop import build_trainer, layout_of, train
from megatron_davinci.train.optimizer import build_optimizer
from megatron_davinci.train.parallel import world


def run(values: dict[str, Any]) -> None:
    """Train a recipe."""
    train(parse_recipe(values))


def logits(values: dict[str, Any], documents: list[list[int]], trained: bool = False) -> torch.Tensor | None:
    """Logits of packed documents in one process, by a recipe's first weights or its checkpoint's."""
    recipe = parse_recipe(values)
    model = load_model_config(recipe.model)
    with world(), layout_of(recipe) as device:
        trainer = build_trainer(recipe, model, device)
        if trained:
            optimizer = build_optimizer(recipe, trainer.model)
            CheckpointManager(recipe, model, trainer.model, optimizer).load()
        return packed_logits(trainer, pack_documents_for_logits(documents))
