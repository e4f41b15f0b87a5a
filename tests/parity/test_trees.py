"""Law: trees have the loss and every gradient of one sequence per response, in every layout."""

from typing import Any

import pytest
import table
import trees
from layouts import relative_difference

PP2_INTERLEAVED = {**table.PP2, "virtual_pipeline_model_parallel_size": 2}
FULL, SELECTIVE = table.RECOMPUTATION["full"], table.RECOMPUTATION["selective"]
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "alone": (1, {}),
    "full recomputation": (1, FULL),
    "selective recomputation": (1, SELECTIVE),
    "TP2": (2, table.TP2),
    "TP2+SP": (2, {**table.TP2, **table.SP}),
    "TP2+SP, selective recomputation": (2, {**table.TP2, **table.SP, **SELECTIVE}),
    "PP2": (2, table.PP2),
    "PP2, full recomputation": (2, {**table.PP2, **FULL}),
    "PP2 interleaved": (2, PP2_INTERLEAVED),
    "DP2": (2, {}),
    "TP2xPP2+SP": (4, {**table.TP2, **table.PP2, **table.SP}),
}


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def measured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Numbers of rank 0 by layout."""
    values = table.recipe(tmp_path_factory.mktemp("trees"), tie_word_embeddings=request.param)
    wanted = {name: (ranks, table.variant(values, fields)) for name, (ranks, fields) in LAYOUTS.items()}
    return {name: ranks[0] for name, ranks in table.run_all(wanted, trees.measure).items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_trees_equal_one_sequence_per_response(measured: dict[str, Any], layout: str) -> None:
    tree, alone = measured[layout]["tree"], measured[layout]["alone"]
    assert all(abs(gradient).max() > 0 for gradient in alone["gradients"].values())
    assert tree["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert relative_difference(tree["gradients"], alone["gradients"]) <= 1e-5
    assert relative_difference(tree["gradients"], measured["alone"]["alone"]["gradients"]) <= 1e-5
