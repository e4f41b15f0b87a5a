"""What each rank runs in the tests of converted checkpoints: Megatron's own loading."""

from typing import Any

import numpy as np
import torch
from layouts import ADAM_AS_SGD, as_arrays
from megatron.core import dist_checkpointing

from megatron_davinci.config import parse_recipe
from megatron_davinci.core.build_trainer import build_trainer
from megatron_davinci.core.groups import model_parallel, world
from megatron_davinci.core.next_token import next_token_batch
from megatron_davinci.core.optimizer import build_optimizer, set_hyperparameters, unwrap
from megatron_davinci.data.batches import RunBatches
from megatron_davinci.models.config import load_model_config
from megatron_davinci.testing.gather import gather_parameters
from megatron_davinci.train.checkpoint.manager import CheckpointManager


def weights(recipes: list[dict[str, Any]], checkpoint: str | None) -> list[dict[str, np.ndarray]]:
    """Per recipe, whole parameters: as training begins with them or, given a checkpoint, as Megatron loads it."""
    with world():
        return [_weights(values, checkpoint) for values in recipes]


def save(recipes: list[dict[str, Any]]) -> list[None]:
    """Two checkpoints of each run in its own layout: as it begins, and after a step; gives nothing."""
    with world():
        for values in recipes:
            recipe = parse_recipe({**values, "megatron": {**values["megatron"], **ADAM_AS_SGD}})
            stage, model = recipe.stage(0), load_model_config(recipe.model)
            with model_parallel(stage, recipe.seed) as device:
                trainer = build_trainer(recipe, stage, model, device)
                optimizer = build_optimizer(stage.megatron, trainer.chunks)
                manager = CheckpointManager(recipe, model, trainer.chunks, optimizer)
                manager.save(1, {})
                set_hyperparameters(optimizer, recipe.schedule.lr * ADAM_AS_SGD["adam_eps"])
                trainer.step(optimizer, next_token_batch(RunBatches(recipe).stages[0], 0, device))
                manager.save(2, {})
    return [None for _ in recipes]


def _weights(values: dict[str, Any], checkpoint: str | None) -> dict[str, np.ndarray]:
    recipe = parse_recipe(values)
    stage = recipe.stage(0)
    with model_parallel(stage, recipe.seed) as device:
        trainer = build_trainer(recipe, stage, load_model_config(recipe.model), device)
        if checkpoint is not None:
            models = dict(enumerate(unwrap(trainer.chunks)))
            # Megatron's own function, its own unpickler, and no word on what may be missing
            state = dist_checkpointing.load({i: model.sharded_state_dict() for i, model in models.items()}, checkpoint)
            with torch.no_grad():
                for number, model in models.items():
                    model.load_state_dict(state[number])
        return as_arrays(gather_parameters(trainer, lambda p: p.data))
