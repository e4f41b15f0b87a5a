"""Property: a GPU gives the CPU's loss, gradients and weights; packed documents and trees are as exact there.

On a machine with a GPU: `DAVINCI_TEST_GPU=1 python -m pytest --numprocesses=0 -m gpu`. Elsewhere the same tests run on
the CPU, so that they are ready when there is one.
"""

from importlib.util import find_spec
from typing import Any

import layouts
import pytest
import table
import trees
from devices import MODEL, on_cpu, on_device
from layouts import relative_difference

from megatron_davinci.core.device import has_gpu

pytestmark = pytest.mark.gpu

BF16 = table.PRECISIONS["bf16"]
# One way of recomputation rehearses them.
RECOMPUTATION = table.RECOMPUTATION if has_gpu() else {"none": {}}
PATHS = ("tree", "split", "unshared", "alone")
# Faults of the model's own inputs and labels, whatever kernel attends.
PLANTED = ("positions by row number", "one label for each row")


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return table.recipe(tmp_path_factory.mktemp("gpu"), **MODEL)


@pytest.fixture(scope="module")
def rows(values: dict[str, Any]) -> dict[str, table.Row]:
    """By precision, this device's numbers against the CPU's in fp32; those of local layers are in bf16."""
    recipes = [table.variant(values, fields) for fields in table.PRECISIONS.values()]
    local = table.variant(values, {**BF16, "transformer_impl": "local"})
    only_local = has_gpu() and find_spec("transformer_engine") is None
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("NVIDIA_TF32_OVERRIDE", "0")  # Transformer Engine multiplies fp32 in TF32 otherwise
        found = on_device(layouts.measure, [local] if only_local else [local, *recipes])
    known = on_cpu(layouts.measure, recipes)
    of_cpu = dict(zip((table.REFERENCE, table.BF16_ALONE), known, strict=True))
    names = [("local layers", "bf16", "none"), *(("device", precision, "none") for precision in table.PRECISIONS)]
    of_device = dict(zip(names, found, strict=False))
    judged = [row for row in table.judge({**of_cpu, **of_device}) if row.layout in ("device", "local layers")]
    return {row.precision if row.layout == "device" else row.layout: row for row in judged}


@pytest.fixture(scope="module")
def tree_errors(values: dict[str, Any]) -> dict[tuple[str, str], float]:
    """By recomputation and path, the error of gradients in bf16 against the CPU's in fp32, each response alone."""
    [exact] = on_cpu(trees.measure, [values], ("alone",))
    recipes = [table.variant(values, {**BF16, **fields}) for fields in RECOMPUTATION.values()]
    found = on_device(trees.measure, recipes, PATHS) + on_device(trees.measure, recipes[:1], PLANTED)
    return {
        (how, path): relative_difference(of_path["gradients"], exact["alone"]["gradients"])
        for how, of_how in zip([*RECOMPUTATION, "none"], found, strict=True)
        for path, of_path in of_how.items()
    }


@pytest.mark.parametrize("precision", [*table.PRECISIONS, "local layers"])
def test_gradients_and_weights_are_those_of_the_cpu(rows: dict[str, table.Row], precision: str) -> None:
    if precision not in rows:
        pytest.skip("needs Transformer Engine")
    row = rows[precision]
    assert row.gradients <= row.gradients_limit
    assert row.weights <= row.weights_limit
    assert row.loss <= (1e-6 if precision == "fp32" else 1e-3)


def test_a_changed_document_changes_nothing_of_the_others(values: dict[str, Any]) -> None:
    [found] = on_device(layouts.measure_isolation, [table.variant(values, BF16)])
    assert all(found.values()), found


@pytest.mark.parametrize("path", PATHS[:-1])
@pytest.mark.parametrize("how", RECOMPUTATION)
def test_trees_stray_no_further_than_bf16_does(tree_errors: dict[tuple[str, str], float], how: str, path: str) -> None:
    assert tree_errors[how, path] <= table.BF16_FACTOR * tree_errors["none", "alone"]


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_larger_than_bf16_s_error(tree_errors: dict[tuple[str, str], float], fault: str) -> None:
    assert tree_errors["none", fault] > 2 * table.BF16_FACTOR * tree_errors["none", "alone"]
