"""Megatron's optimizer from a recipe."""

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_davinci.recipe import Recipe

# What Megatron leaves to its caller; a recipe's `megatron` section wins.
_DEFAULTS = {"optimizer": "adam", "weight_decay": 0.1, "adam_beta1": 0.9, "adam_beta2": 0.95, "clip_grad": 1.0}


def data_parallel(config: TransformerConfig, model: GPTModel) -> DistributedDataParallel:
    """The model with its gradient buffers. Gradients are summed over ranks: the loss carries global weights."""
    return DistributedDataParallel(config, DistributedDataParallelConfig(), model)


def build_optimizer(recipe: Recipe, model: DistributedDataParallel) -> MegatronOptimizer:
    """Adam or SGD with clipping by global norm."""
    fields = OptimizerConfig.__dataclass_fields__
    chosen = {name: value for name, value in {**_DEFAULTS, **recipe.megatron}.items() if name in fields}
    config = OptimizerConfig(lr=recipe.schedule.lr, min_lr=recipe.schedule.min_lr, params_dtype=torch.float32, **chosen)
    return get_megatron_optimizer(config, [model])


def set_learning_rate(optimizer: MegatronOptimizer, lr: float) -> None:
    """Give every parameter group the learning rate of this step."""
    for group in optimizer.param_groups:
        group["lr"] = lr
