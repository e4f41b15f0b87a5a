"""Property: gradients are one process's for any dealing of rows to replicas, in any order and of any widths."""

from pathlib import Path
from typing import Any

import dealt
import layouts
import pytest
import table

from megatron_davinci.testing import run_on_ranks

INTERLEAVED = {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}
LAYOUTS = {
    "TP2+SP": table.LAYOUTS["TP2+SP"],
    "PP4 interleaved": table.LAYOUTS["PP4 interleaved"],
    "DP2, overlapped": table.LAYOUTS["DP2+distributed optimizer, overlapped"],
    "DP2xPP2": (4, table.PP2),
    "DP2xPP2 interleaved, overlapped": (4, {**INTERLEAVED, **table.DISTRIBUTED, **table.OVERLAP}),
}
SEEDS = (1, 2, 3)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """A recipe, and what one process finds for it."""
    values = table.recipe(tmp_path_factory.mktemp("dealing"))
    [[found]] = run_on_ranks(layouts.measure, 1, [values])
    return values, found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_dealing_gives_the_gradients_of_one_process(alone: Any, layout: str) -> None:
    values, reference = alone
    ranks, fields = LAYOUTS[layout]
    for found in run_on_ranks(dealt.measure, ranks, table.variant(values, fields), SEEDS)[0]:
        assert layouts.relative_difference(found["gradients"], reference["gradients"]) <= table.FP32_LIMIT
        assert found["labels"] == reference["labels"]


def test_a_document_that_is_dealt_to_nobody_is_seen(alone: Any, tmp_path: Path) -> None:
    """Planted: the weights are those of the labels that are there, so the loss stays near, and gradients do not."""
    values, reference = alone
    ranks, fields = table.LAYOUTS["DP2"]
    [found] = run_on_ranks(dealt.measure, ranks, table.variant(values, fields), (1,), True)[0]
    assert layouts.relative_difference(found["gradients"], reference["gradients"]) > 100 * table.FP32_LIMIT
