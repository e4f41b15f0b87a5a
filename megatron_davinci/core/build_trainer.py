"""A model from a recipe, on this rank: its layout, its first weights."""

from pathlib import Path

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_davinci.config import Recipe, StageRecipe
from megatron_davinci.core.build import build_chunks, transformer_config
from megatron_davinci.core.gpt import ScoringGPTModel
from megatron_davinci.core.groups import sync_errors
from megatron_davinci.core.initialize import init_weights, load_weights
from megatron_davinci.core.optimizer import data_parallel
from megatron_davinci.core.step import Trainer
from megatron_davinci.models.config import ModelConfig


def build_trainer(
    recipe: Recipe, stage: StageRecipe, model: ModelConfig, device: torch.device, unset: bool = False
) -> Trainer:
    """This rank's model with its first weights, ready to step.

    `unset`: they are left unset, for a checkpoint's to be loaded.
    """
    config, chunks = build_model(recipe, stage, model, device, unset)
    return Trainer(data_parallel(config, stage.megatron, chunks), config, device)


def build_model(
    recipe: Recipe, stage: StageRecipe, model: ModelConfig, device: torch.device, unset: bool = False
) -> tuple[TransformerConfig, list[ScoringGPTModel]]:
    """The chunks of the model that this rank holds, with its first weights. See `build_trainer`."""
    config = transformer_config(model, stage.megatron)
    chunks = build_chunks(config, model)
    if recipe.init_from is not None and not unset:
        with sync_errors():  # each rank reads its own part, and may be alone to find it damaged
            load_weights(chunks, Path(recipe.init_from), recipe.model)
    elif not unset:
        init_weights(chunks, model, recipe.seed)
    for chunk in chunks:
        chunk.to(device)
    return config, chunks
