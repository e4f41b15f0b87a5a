"""Property: what a dry run says of a rank of a large layout is what Megatron builds there, to the parameter."""

from pathlib import Path
from typing import Any

import full_layouts
import pytest
import yaml

from megatron_davinci.config import parse_recipe
from megatron_davinci.models.config import load_model_config
from megatron_davinci.models.layout import pipeline_ranks
from megatron_davinci.testing import run_on_ranks

EXAMPLES = Path(__file__).parents[2] / "examples"


def layouts() -> dict[str, dict[str, Any]]:
    """Every different layout that a shipped recipe trains a model in."""
    found = {}
    for path in sorted(EXAMPLES.glob("*/recipe.yaml")):
        recipe = yaml.safe_load(path.read_text())
        for stage in recipe["data"]["stages"]:
            megatron = {**recipe["megatron"], **stage.get("megatron", {})}
            sizes = [value for name, value in sorted(megatron.items()) if name.endswith("parallel_size")]
            found.setdefault(f"{recipe['model']} {sizes}", {"model": recipe["model"], "megatron": megatron})
    return found


LAYOUTS = layouts()


def stage_of(layout: dict[str, Any]) -> Any:
    values = {
        "model": layout["model"],
        "megatron": layout["megatron"],
        "data": {"seq_length": 32768, "stages": [{"name": "only", "blend": [{"corpus": "none"}]}]},
        "batch": {"global_batch_size": 1024},
        "schedule": {"lr": 1.0},
        "checkpoint": {"dir": "none"},
    }
    return parse_recipe(values).stage(0)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_rank_holds_what_the_plan_says(name: str) -> None:
    model, stage = load_model_config(LAYOUTS[name]["model"]), stage_of(LAYOUTS[name])
    tensor, pipeline = stage.layout.tensor, stage.layout.pipeline
    planned = pipeline_ranks(model, stage.layout)
    [built] = run_on_ranks(full_layouts.built, 1, LAYOUTS[name]["model"], stage, 2)
    assert len(built) == pipeline * min(2, tensor)
    for rank in built:
        expected = planned[rank["pipeline"]]
        assert rank["parameters"] == expected.parameters
        assert rank["layers"] == [list(chunk) for chunk in expected.layers]


@pytest.mark.parametrize("name", LAYOUTS)
def test_ranks_make_up_the_model(name: str) -> None:
    """Norms are on every tensor-parallel rank, everything else on one."""
    model, stage = load_model_config(LAYOUTS[name]["model"]), stage_of(LAYOUTS[name])
    tensor = stage.layout.tensor
    ranks = pipeline_ranks(model, stage.layout)
    norms = model.num_layers * model.norm_parameters + model.hidden_size
    padding = 2 * (model.padded_vocab_size - model.vocab_size) * model.hidden_size
    held = sum(rank.parameters for rank in ranks) * tensor
    assert held - (tensor - 1) * norms - padding == model.num_parameters()
    assert sorted(number for rank in ranks for chunk in rank.layers for number in chunk) == list(
        range(model.num_layers)
    )
