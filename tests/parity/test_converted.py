"""Law: Megatron loads a converted checkpoint in every layout, and has the weights that Hugging Face's directory has."""

from typing import Any

import converted
import numpy as np
import pytest
import table
from test_convert import write_weights

from megatron_davinci.checkpoint.convert import import_from_hf

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "TP1": (1, {}),
    "TP2": (2, table.TP2),
    "PP2": (2, table.PP2),
    "TP2xPP2": (4, {**table.TP2, **table.PP2}),
}


@pytest.fixture(scope="module", params=[False, True], ids=["qwen2", "qwen3, tied"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Weights by layout; "begun": of a run that begins with the Hugging Face directory."""
    folder = tmp_path_factory.mktemp("converted")
    kind = {"model_type": "qwen3", "tie_word_embeddings": True, "vocab_size": 300} if request.param else {}
    source = write_weights(folder / "hf", **kind)
    import_from_hf(source, folder / "megatron", shard_bytes=40_000)
    values = {**table.recipe(folder), "model": str(source)}
    wanted = {name: (ranks, table.variant(values, fields)) for name, (ranks, fields) in LAYOUTS.items()}
    found = table.run_all(wanted, converted.weights, str(folder / "megatron"))
    begun = {"begun": (1, {**values, "init_from": str(source)})}
    return {name: ranks[0] for name, ranks in {**found, **table.run_all(begun, converted.weights, None)}.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_megatron_loads_what_was_converted(loaded: dict[str, Any], layout: str) -> None:
    found, expected = loaded[layout], loaded["begun"]
    assert found.keys() == expected.keys() and len(found) > 10
    assert all(np.array_equal(found[name], expected[name]) for name in found)
