"""Property: a plan's bytes of a layer are those that its forward pass saves, whatever is recomputed.

On a CPU Megatron's own layers run. Transformer Engine's keep other tensors, whose formula Megatron-LM's golden values
test (`tests/unit/test_plan_memory.py`).
"""

from typing import Any

import pytest
import saved_activations
from conftest import write_corpus, write_model

from megatron_davinci.models.config import load_model_config
from megatron_davinci.models.parallel_layout import MegatronOptions
from megatron_davinci.plan.memory import kept_by_layer
from megatron_davinci.plan.shapes import LayerShapes, PlannedLayout
from megatron_davinci.testing import run_on_ranks

TOKENS = 256
FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
WAYS: dict[str, dict[str, Any]] = {
    "none": {},
    "core_attn": {"recompute_granularity": "selective"},
    "mlp": {"recompute_granularity": "selective", "recompute_modules": ["mlp"]},
    "core_attn and mlp": {"recompute_granularity": "selective", "recompute_modules": ["core_attn", "mlp"]},
    "full": FULL,
    "full, two layers together": {**FULL, "recompute_num_layers": 2},
    "block": {**FULL, "recompute_method": "block"},
}
PRECISIONS: dict[str, dict[str, Any]] = {"bf16": {"bf16": True}, "fp32": {}}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[float, float]]:
    """(precision, way) -> (bytes of a layer more, what the plan says of one)."""
    folder = tmp_path_factory.mktemp("saved")
    write_corpus(folder / "corpus", [TOKENS] * 2)
    models = {n: write_model(folder / f"m{n}", hidden_size=64, intermediate_size=160, num_hidden_layers=n)
              for n in (2, 4)}  # fmt: skip
    wanted = [(precision, way) for precision in PRECISIONS for way in WAYS]
    recipes = [
        {
            "model": str(model),
            "megatron": {**PRECISIONS[precision], **WAYS[way]},
            "data": {"seq_length": TOKENS, "stages": [{"name": "s", "blend": [{"corpus": str(folder / "corpus")}]}]},
            "batch": {"global_batch_size": 1},
            "schedule": {"lr": 1e-2},
            "checkpoint": {"dir": str(folder / "run")},
        }
        for precision, way in wanted
        for model in models.values()
    ]
    [saved] = run_on_ranks(saved_activations.saved_bytes, 1, recipes)
    shapes, found = LayerShapes.of(load_model_config(str(models[2]))), {}
    for number, (precision, way) in enumerate(wanted):
        layout = PlannedLayout.of(MegatronOptions.of({**PRECISIONS[precision], **WAYS[way]}), 1, gpu=False)
        with_it, without = kept_by_layer(shapes, layout, TOKENS)
        few, many = saved[2 * number : 2 * number + 2]
        # of layers 3 and 4, block recomputes neither
        found[precision, way] = ((many - few) / 2, without if way == "block" else with_it)
    return found


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("way", WAYS)
def test_a_layer_saves_what_the_plan_says(
    measured: dict[tuple[str, str], tuple[float, float]], precision: str, way: str
) -> None:
    saved, planned = measured[precision, way]
    assert saved == pytest.approx(planned, rel=0.002)
