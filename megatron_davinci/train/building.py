"""A model from a recipe, on this rank: its layout, its first weights."""

from pathlib import Path

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_davinci.models.build import build_chunks, transformer_config
from megatron_davinci.models.config import ModelConfig
from megatron_davinci.models.gpt import ScoringGPTModel
from megatron_davinci.models.initialize import draw_weights, load_weights
from megatron_davinci.recipe import Recipe, StageRecipe
from megatron_davinci.train.optimizer import data_parallel
from megatron_davinci.train.step import Trainer


def build_trainer(recipe: Recipe, stage: StageRecipe, model: ModelConfig, device: torch.device) -> Trainer:
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
        load_weights(chunks, Path(recipe.init_from), recipe.model)
    for chunk in chunks:
        chunk.to(device)
    return config, chunks
