"""What each rank runs in the parity tests; importable, since ranks are processes of their own."""

import copy
from typing import Any

import torch

from megatron_davinci.data.batches import GlobalBatches
from megatron_davinci.models.config import load_model_config
from megatron_davinci.recipe import parse_recipe
from megatron_davinci.testing.gather import gather_parameters
from megatron_davinci.train.loop import build_trainer, layout_of
from megatron_davinci.train.optimizer import build_optimizer, set_learning_rate
from megatron_davinci.train.parallel import world

SGD_STEPS = 3


def with_megatron(values: dict[str, Any], megatron: dict[str, Any], micro_batch_size: int = 1) -> dict[str, Any]:
    """The same recipe in another layout."""
    changed = copy.deepcopy(values)
    changed["megatron"] |= megatron
    changed["batch"]["micro_batch_size"] = micro_batch_size
    return changed


def measure(variants: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per recipe: loss, gradients and gradient norm of the first batch; weights after three SGD steps."""
    with world():
        return [_measure_one(values) for values in variants]


def _measure_one(values: dict[str, Any]) -> dict[str, Any]:
    recipe = parse_recipe({**values, "megatron": {**values["megatron"], "optimizer": "sgd"}})
    batches = GlobalBatches(recipe)
    model = load_model_config(recipe.model)
    with layout_of(recipe) as device:
        trainer = build_trainer(recipe, model, device)
        stage, sequences = batches.at(0)
        loss = trainer.gradients(stage, sequences)
        gradients = gather_parameters(trainer, lambda p: p.main_grad)
        optimizer = build_optimizer(recipe, trainer.model)
        set_learning_rate(optimizer, recipe.schedule.lr)
        steps = [trainer.step(optimizer, stage, sequences) for _ in range(SGD_STEPS)]
        weights = gather_parameters(trainer, lambda p: p.data)
    return {"loss": loss, "gradients": gradients, "steps": steps, "weights": weights}


def relative_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Over all tensors, the largest max|difference| / max|reference|."""
    assert one.keys() == other.keys()
    assert all(tensor.isfinite().all() for tensor in (*one.values(), *other.values()))  # max() would overlook a NaN
    return max(float((one[name] - other[name]).abs().max() / other[name].abs().max()) for name in one)
