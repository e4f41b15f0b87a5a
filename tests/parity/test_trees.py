"""Property: trees have the loss, every gradient and the weights of one sequence per response, in every layout."""

from typing import Any

import forests
import pytest
import table
import trees
from conftest import EFFORT
from layouts import relative_difference
from planted import FAULTS

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
    "PP2 interleaved, full recomputation": (2, {**PP2_INTERLEAVED, **FULL}),
    "DP2": (2, {}),
    "TP2xPP2+SP": (4, {**table.TP2, **table.PP2, **table.SP}),
}
# Each kind of split and of recomputation once; `make acceptance` has all of LAYOUTS.
SHORT = ("alone", "TP2+SP, selective recomputation", "PP2 interleaved, full recomputation", "DP2", "TP2xPP2+SP")
MEASURED = {name: LAYOUTS[name] for name in (LAYOUTS if EFFORT > 1 else SHORT)}
OF_STEPS = {
    "alone": (1, {}),
    "DP2": (2, {"use_distributed_optimizer": True}),
    "TP2+SP": (2, {**table.TP2, **table.SP}),
    "PP2 interleaved, selective recomputation": (2, {**PP2_INTERLEAVED, **SELECTIVE}),
}
PATHS = ("tree", "split", "unshared", "alone")
WHERE_FAULTS_SHOW = {"TP2+SP": list(FAULTS)[:-1], "PP2, full recomputation": list(FAULTS)[-1:]}


# Tied embeddings are for `make acceptance` too: gradients of every layout are compared with them in test_layouts.
TIED = [False, True] if EFFORT > 1 else [False]


@pytest.fixture(scope="module", params=TIED, ids=["untied", "tied"][: len(TIED)])
def measured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Numbers of rank 0 by layout and path."""
    values = table.recipe(tmp_path_factory.mktemp("trees"), tie_word_embeddings=request.param)
    wanted = {name: (ranks, table.variant(values, fields)) for name, (ranks, fields) in MEASURED.items()}
    return {name: ranks[0] for name, ranks in table.run_all(wanted, trees.measure, PATHS).items()}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By fault, the numbers of the tree with it and without."""
    values = table.recipe(tmp_path_factory.mktemp("planted"), tie_word_embeddings=False)
    found = {}
    for layout, faults in WHERE_FAULTS_SHOW.items():
        ranks, fields = LAYOUTS[layout]
        wanted = {layout: (ranks, table.variant(values, fields))}
        [every] = table.run_all(wanted, trees.measure, ("tree", *faults)).values()
        found |= {fault: (every[0][fault], every[0]["tree"]) for fault in faults}
    return found


@pytest.mark.parametrize("path", PATHS[:-1])
@pytest.mark.parametrize("layout", MEASURED)
def test_trees_equal_one_sequence_per_response(measured: dict[str, Any], layout: str, path: str) -> None:
    tree, alone = measured[layout][path], measured[layout]["alone"]
    assert all(abs(gradient).max() > 0 for gradient in alone["gradients"].values())
    for reference in (alone, measured["alone"]["alone"]):
        assert tree["loss"] == pytest.approx(reference["loss"], rel=1e-5)
        assert relative_difference(tree["gradients"], reference["gradients"]) <= 1e-5
        assert relative_difference(tree["weights"], reference["weights"]) <= 1e-5
        assert relative_difference(tree["later gradients"], reference["later gradients"]) <= 1e-5


def test_the_weights_that_are_compared_have_moved(measured: dict[str, Any]) -> None:
    weights = measured["alone"]["alone"]["weights"]["decoder.final_layernorm.weight"]
    assert abs(weights - 1).max() > 1e-3


@pytest.fixture(scope="module")
def stepped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Numbers of rank 0 by layout, of random steps."""
    values = table.recipe(tmp_path_factory.mktemp("forests"), tie_word_embeddings=True)
    wanted = {name: (ranks, table.variant(values, fields)) for name, (ranks, fields) in OF_STEPS.items()}
    return {name: ranks[0] for name, ranks in table.run_all(wanted, forests.measure).items()}


@pytest.mark.parametrize("layout", OF_STEPS)
@pytest.mark.parametrize("step", forests.STEPS)
def test_random_steps_share_what_they_can_and_lose_nothing(stepped: dict[str, Any], step: str, layout: str) -> None:
    """Every objective, and both templates: trees against a sequence for each response."""
    expected_sums, expected = stepped["alone"][step, "unshared"]
    for path in forests.PATHS:
        sums, gradients = stepped[layout][step, path]
        assert sums["loss"] == pytest.approx(expected_sums["loss"], rel=1e-5, abs=1e-5)
        assert relative_difference(gradients, expected) <= 1e-5


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_shows_in_the_gradients(planted: dict[str, Any], fault: str) -> None:
    wrong, right = planted[fault]
    assert relative_difference(wrong["gradients"], right["gradients"]) > 1e-2
    if FAULTS[fault]:
        assert wrong["loss"] == pytest.approx(right["loss"], rel=1e-6)  # who compares losses sees nothing
