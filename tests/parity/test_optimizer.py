"""Adam gets what Megatron's own scheduler would give it: norms and biases do not decay, each stage has its own."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import layouts
import pytest
import table
import torch
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer import optimizer as optimizers
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_davinci.config import parse_recipe
from megatron_davinci.core.build_trainer import build_trainer
from megatron_davinci.core.optimizer import build_optimizer, clip_and_step, set_hyperparameters, unwrap
from megatron_davinci.core.sharding import named_parameters
from megatron_davinci.core.step import Trainer
from megatron_davinci.models.config import load_model_config
from megatron_davinci.testing import run_on_ranks

LR, DECAY = 0.5, 0.1
FIRST = {"weight_decay": DECAY, "adam_beta2": 0.9, "adam_eps": 1e-6}
LATER = {"weight_decay": 0.3, "adam_beta1": 0.8, "adam_beta2": 0.99}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "alone": (1, {}),
    "bf16": (1, {"bf16": True}),
    "DP2": (2, {"use_distributed_optimizer": True}),
    "PP2": (2, {"pipeline_model_parallel_size": 2}),
}


def decays(recipes: list[dict[str, Any]]) -> list[Any]:
    return layouts.in_their_layouts(recipes, _decays)


def _decays(values: dict[str, Any], device: torch.device) -> tuple[dict[str, float], list[Any], list[Any]]:
    """By parameter, what a step without gradients leaves of it; and the groups by us, by Megatron's scheduler."""
    trainer, optimizer = _built({**values["megatron"], **FIRST}, values, device)
    [*parameters] = named_parameters(unwrap(trainer.chunks))
    for _, parameter in parameters:
        parameter.data.fill_(1.0)
    optimizer.reload_model_params()
    trainer.zero_gradients()
    set_hyperparameters(optimizer, LR)
    optimizer.step()
    left = {name: float(parameter.float().mean()) for name, parameter in parameters}
    _, later = _built({**values["megatron"], **LATER}, values, device)
    later.load_state_dict(optimizer.state_dict())
    set_hyperparameters(later, LR)
    ours = _groups(later)
    _by_megatron(later)
    return left, ours, _groups(later)


def _built(megatron: dict[str, Any], values: dict[str, Any], device: torch.device) -> tuple[Trainer, MegatronOptimizer]:
    recipe = parse_recipe({**values, "megatron": megatron})
    trainer = build_trainer(recipe, recipe.stage(0), load_model_config(recipe.model), device)
    return trainer, build_optimizer(recipe.stage(0).megatron, trainer.chunks)


def steps(recipes: list[dict[str, Any]]) -> list[Any]:
    return layouts.in_their_layouts(recipes, _steps)


def _steps(values: dict[str, Any], device: torch.device) -> tuple[bool, int, float]:
    """Are weights after our step those after Megatron's own? How often was a norm computed in ours, and which?"""
    found, norms, calls = [], [], []
    for ours in (True, False):
        trainer, optimizer = _built({**values["megatron"], "clip_grad": 0.5}, values, device)
        trainer.zero_gradients()
        for name, parameter in named_parameters(unwrap(trainer.chunks)):
            parameter.main_grad.fill_(0.01 * (1 + len(name) % 7))
        set_hyperparameters(optimizer, LR)
        if ours:
            with patch.object(optimizers, "get_grad_norm_fp32", side_effect=optimizers.get_grad_norm_fp32) as computed:
                optimizer.prepare_grads()
                norms.append(float(optimizer.get_grad_norm()))
                clip_and_step(optimizer, norms[0])
                calls.append(computed.call_count)
        else:
            optimizer.step()
        found.append([parameter.detach().clone() for _, parameter in named_parameters(unwrap(trainer.chunks))])
    return all(a.equal(b) for a, b in zip(*found, strict=True)), calls[0], norms[0]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_step_computes_one_norm_and_clips_as_megatron_does(tmp_path: Path, name: str) -> None:
    ranks, fields = LAYOUTS[name]
    for [(same, norms, norm)] in run_on_ranks(steps, ranks, [table.variant(table.recipe(tmp_path), fields)]):
        assert same and norms == 1 and norm > 0.5


def _groups(optimizer: MegatronOptimizer) -> list[Any]:
    fields = ("lr", "weight_decay", "betas", "eps")
    return [[group[field] for field in fields] for group in optimizer.param_groups]


def _by_megatron(optimizer: MegatronOptimizer) -> None:
    decay = LATER["weight_decay"]
    for group in optimizer.param_groups:
        group |= {"max_lr": LR, "min_lr": LR, "lr": 0.0, "weight_decay": -1.0}
    schedule = {"init_lr": LR, "max_lr": LR, "min_lr": LR, "lr_warmup_steps": 0, "lr_decay_steps": 10,
                "lr_decay_style": "constant", "start_wd": decay, "end_wd": decay, "wd_incr_steps": 10,
                "wd_incr_style": "constant"}  # fmt: skip
    OptimizerParamScheduler(optimizer, **schedule).step(1)


@pytest.mark.parametrize("name", LAYOUTS)
def test_norms_and_biases_do_not_decay(tmp_path: Path, name: str) -> None:
    ranks, fields = LAYOUTS[name]
    recipe = table.recipe(tmp_path)
    found = run_on_ranks(decays, ranks, [table.variant(recipe, fields)])
    seen = set()
    for [(left, ours, megatrons)] in found:
        assert ours == megatrons and {group[1] for group in ours} == {0.0, LATER["weight_decay"]}
        assert {(group[2], group[3]) for group in ours} == {((0.8, 0.99), 1e-8)}
        for parameter, mean in left.items():
            spared = "norm" in parameter or parameter.endswith(".bias")
            assert mean == pytest.approx(1.0 if spared else 1 - LR * DECAY, rel=4e-3), parameter
            seen.add(spared)
    assert seen == {True, False}
