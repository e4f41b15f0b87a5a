"""Property: loss, gradients and weights do not depend on how a batch is split over ranks, micro-batches and sequences.

The whole table, with every way of recomputation and every precision, is `make parity`.
"""

from typing import Any

import pytest
import table

# One process alone is in the table too: other splits of the batch must not show there either.
SPLIT = ("alone", "CP2", "DP2", "PP4 interleaved")
IN_EVERY_WAY = ("alone", "TP2+SP", "PP4 interleaved", "CP2xTP2+SP")
RECOMPUTED = ("TP2+SP", "PP2 interleaved, fewer layers last")
ROWS = [
    (layout, precision, how)
    for layout in ("alone", *table.LAYOUTS)
    for precision, how in [("fp32", "none"), ("fp32", "full"), ("bf16", "none")]
    if (layout, precision, how) != table.REFERENCE and ((precision, how) == ("fp32", "none") or layout in IN_EVERY_WAY)
]
ROWS += [(layout, "fp32", split) for layout in SPLIT for split in table.SPLITS]
ROWS += [(layout, "fp32", how) for layout in RECOMPUTED for how in ("block", "mlp")]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, table.Row]:
    """The lines of the table that a short run measures, of a model with tied embeddings and an odd vocabulary."""
    values = table.recipe(tmp_path_factory.mktemp("parity"), tie_word_embeddings=True, vocab_size=257)
    measured = table.measure(values, ROWS)
    return {(row.layout, row.precision, row.how): row for row in table.judge(measured)}


@pytest.fixture(scope="module")
def isolation(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bool]]:
    """What a changed document changes, on every layout."""
    return table.isolate(table.recipe(tmp_path_factory.mktemp("isolation")))


@pytest.mark.parametrize("name", ROWS, ids=" ".join)
def test_gradients_and_weights_equal_one_process(rows: dict[Any, table.Row], name: tuple[str, str, str]) -> None:
    row = rows[name]
    assert row.gradients <= row.gradients_limit
    assert row.weights <= row.weights_limit
    assert row.loss <= (1e-6 if row.precision == "fp32" else 1e-3)


@pytest.mark.parametrize("layout", ["alone", *table.LAYOUTS])
def test_a_changed_document_changes_nothing_of_the_others(isolation: dict[str, dict[str, bool]], layout: str) -> None:
    assert all(isolation[layout].values()), isolation[layout]
