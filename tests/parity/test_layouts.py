"""Law: loss, gradients and weights do not depend on how a batch is split over ranks, micro-batches and sequences."""

from pathlib import Path
from typing import Any

import layouts
import pytest
from conftest import write_corpus, write_model

from megatron_davinci.testing import run_on_ranks

TP2 = {"tensor_model_parallel_size": 2}
PP2 = {"pipeline_model_parallel_size": 2}
SP = {"sequence_parallel": True}
FULL_RECOMPUTE = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
LAYOUTS: dict[str, tuple[int, dict[str, Any], int]] = {  # name: (ranks, megatron fields, micro-batch size)
    "two sequences per micro-batch": (1, {}, 2),
    "TP2": (2, TP2, 1),
    "TP2+SP": (2, {**TP2, **SP}, 1),
    "PP2": (2, PP2, 1),
    "DP2": (2, {}, 1),
    "TP2+SP, full recomputation": (2, {**TP2, **SP, **FULL_RECOMPUTE}, 1),
    "TP2xPP2+SP": (4, {**TP2, **PP2, **SP}, 1),
}


def _recipe(folder: Path, tied: bool) -> dict[str, Any]:
    lengths = [1, 64, 7, 33, 20, 50, 2, 31, 64, 12, 5, 40, 28, 3, 17, 60, 9, 22]
    corpus = write_corpus(folder / "corpus", lengths)
    return {
        "model": str(write_model(folder / "model", tie_word_embeddings=tied)),
        "megatron": {},
        "data": {"seq_length": 64, "stages": [{"name": "only", "blend": [{"corpus": str(corpus)}]}]},
        "batch": {"global_size": 18},
        "schedule": {"lr": 1e-2},
        "checkpoint": {"dir": str(folder / "run")},
    }


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def measured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every layout's numbers, and one process's as "reference"; layouts of one size share their processes."""
    values = _recipe(tmp_path_factory.mktemp("parity"), tied=request.param)
    found = {}
    for ranks in (1, 2, 4):
        names = [name for name, layout in LAYOUTS.items() if layout[0] == ranks]
        variants = [layouts.with_megatron(values, *LAYOUTS[name][1:]) for name in names]
        if ranks == 1:
            names, variants = ["reference", *names], [values, *variants]
        found |= dict(zip(names, run_on_ranks(layouts.measure, ranks, variants)[0], strict=True))
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_equal_one_process(measured: dict[str, Any], layout: str) -> None:
    reference = measured["reference"]["gradients"]
    assert all(gradient.abs().max() > 0 for gradient in reference.values())
    assert layouts.relative_difference(measured[layout]["gradients"], reference) <= 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_after_three_sgd_steps_equal_one_process(measured: dict[str, Any], layout: str) -> None:
    assert layouts.relative_difference(measured[layout]["weights"], measured["reference"]["weights"]) <= 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_and_gradient_norm_equal_one_process(measured: dict[str, Any], layout: str) -> None:
    assert measured[layout]["loss"] == pytest.approx(measured["reference"]["loss"], rel=1e-6)
    for step, reference in zip(measured[layout]["steps"], measured["reference"]["steps"], strict=True):
        assert step == pytest.approx(reference, rel=1e-5)
