"""Property: a plan's bytes are those of the tensors that training keeps between two steps."""

from itertools import chain
from pathlib import Path
from typing import Any

import layouts
import pytest
import torch
from conftest import write_corpus, write_model

from megatron_davinci.config import parse_recipe
from megatron_davinci.core.adam import parts_of
from megatron_davinci.core.build_trainer import build_trainer
from megatron_davinci.core.next_token import next_token_batch
from megatron_davinci.core.optimizer import build_optimizer
from megatron_davinci.data.batches import RunBatches
from megatron_davinci.models.config import load_model_config
from megatron_davinci.models.memory import state_bytes
from megatron_davinci.models.parallel_layout import MegatronOptions
from megatron_davinci.testing import run_on_ranks

BF16 = {"bf16": True}
SHARED = {"use_distributed_optimizer": True}


def count(recipes: list[dict[str, Any]]) -> list[int]:
    """Bytes that this rank keeps after a step of each recipe."""
    return layouts.in_their_layouts(recipes, _count_one)


def _count_one(values: dict[str, Any], device: torch.device) -> int:
    recipe = parse_recipe(values)
    batches = RunBatches(recipe).stages[0]
    trainer = build_trainer(recipe, batches.recipe, load_model_config(recipe.model), device)
    optimizer = build_optimizer(batches.recipe.megatron, trainer.chunks)
    trainer.step(optimizer, next_token_batch(batches, 0, device))
    weights = [parameter.data for chunk in trainer.chunks for parameter in chunk.parameters()]
    gradients = [buffer.grad_data for chunk in trainer.chunks for buffer in chunk.buffers]
    moments = [
        value
        for part in parts_of(optimizer)
        for state in part.optimizer.state.values()
        for value in state.values()
        if torch.is_tensor(value) and value.dim()
    ]
    mains = [main for part in parts_of(optimizer) for group in part.optimizer.param_groups for main in group["params"]]
    kept = chain(weights, gradients, moments, (main.data for main in mains))
    return sum({s.data_ptr(): s.nbytes() for s in (tensor.untyped_storage() for tensor in kept)}.values())


@pytest.mark.parametrize(
    "ranks, kinds",
    [(1, [{}, BF16, {**BF16, "grad_reduce_in_fp32": False}]), (2, [{**BF16, **SHARED}, SHARED])],
    ids=["alone", "DP2"],
)
def test_state_is_what_training_keeps(tmp_path: Path, ranks: int, kinds: list[dict[str, Any]]) -> None:
    write_corpus(tmp_path / "corpus", [100, 120, 90, 64])
    model = write_model(tmp_path / "model", hidden_size=256, intermediate_size=512)
    recipes = [
        {
            "model": str(model),
            "megatron": kind,
            "data": {"seq_length": 128, "stages": [{"name": "s", "blend": [{"corpus": str(tmp_path / "corpus")}]}]},
            "batch": {"global_batch_size": 2},
            "schedule": {"lr": 1e-2},
            "checkpoint": {"dir": str(tmp_path / "run")},
        }
        for kind in kinds
    ]
    shape = load_model_config(str(model))
    planned = [state_bytes(shape, MegatronOptions.of(kind)).of_each(ranks) for kind in kinds]
    for kept in run_on_ranks(count, ranks, recipes):
        assert kept == pytest.approx(planned, rel=1e-3)  # buffers are padded
