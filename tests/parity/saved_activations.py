"""What one process saves for backward, layer by layer, and what the plan says it does."""

from typing import Any

import torch

from megatron_davinci.config import parse_recipe
from megatron_davinci.core.build_trainer import build_trainer
from megatron_davinci.core.groups import model_parallel, world
from megatron_davinci.core.next_token import next_token_batch, next_token_forward_step
from megatron_davinci.core.step import Trainer
from megatron_davinci.data.batches import RunBatches
from megatron_davinci.models.config import load_model_config


def saved_bytes(recipes: list[dict[str, Any]]) -> list[int]:
    """Per recipe, the bytes of all tensors that the forward pass of its first micro-batch saves, each storage once;
    weights and gradient buffers are left out."""
    found = []
    with world():
        for values in recipes:
            recipe = parse_recipe(values)
            with model_parallel(recipe.stage(0), 0) as device:
                stage = RunBatches(recipe).stages[0]
                trainer = build_trainer(recipe, stage.recipe, load_model_config(recipe.model), device)
                found.append(_saved_by(trainer, next_token_batch(stage, 0, device).micro_batches[0]))
    return found


def _saved_by(trainer: Trainer, batch: Any) -> int:
    known = {parameter.untyped_storage().data_ptr() for chunk in trainer.chunks for parameter in chunk.parameters()}
    for buffer in (buffer for chunk in trainer.chunks for buffer in chunk.buffers):
        known |= {
            data.untyped_storage().data_ptr() for data in (buffer.grad_data, buffer.param_data) if data is not None
        }
    saved: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            saved[tensor.untyped_storage().data_ptr()] = tensor  # which keeps the storage, and so its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        next_token_forward_step(iter([batch]), trainer.chunks[0])
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
