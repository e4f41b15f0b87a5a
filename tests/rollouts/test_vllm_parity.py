"""Property: vLLM answers by the trainer's weights, whatever the trainer's layout, as the trainer's own engine does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import table
import vllm_runs
from conftest import of_acceptance

from megatron_davinci.testing import run_on_ranks

pytestmark = [of_acceptance, vllm_runs.needs_vllm]
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "alone": (1, {}),
    "TP2+SP": (2, {**table.TP2, **table.SP}),
    "PP2": (2, table.PP2),
    "PP2 interleaved": (2, {**table.PP2, "virtual_pipeline_model_parallel_size": 2}),
    "DP2 overlapped": (2, {**table.DISTRIBUTED, **table.OVERLAP}),
}


MODELS = [("qwen2", False), ("qwen2", True), ("qwen3", False), ("llama", True)]


@pytest.fixture(scope="module", params=MODELS, ids=[f"{family}{', tied' * tied}" for family, tied in MODELS])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A recipe, and a server for its model."""
    folder = tmp_path_factory.mktemp("vllm")
    source = vllm_runs.write_model(folder / "hf", *request.param)
    recipe = {**table.recipe(folder), "model": str(source), "init_from": str(source)}
    recipe["data"] = {**recipe["data"], "seq_length": 256}
    with vllm_runs.server_for(folder, recipe):
        yield {"recipe": recipe, "folder": folder}


def test_every_layout_sends_the_same_weights_and_gets_the_same_answers(served: dict[str, Any]) -> None:
    found = {}
    for name, (ranks, fields) in LAYOUTS.items():
        recipe = table.variant(served["recipe"], fields)
        options = {"servers": str(served["folder"] / "servers")}
        results = run_on_ranks(vllm_runs.compare, ranks, recipe, options, served["folder"])
        found[name] = results[0]
        for each in results[1:]:
            assert each["weights"] == results[0]["weights"] and each["sampled"] == results[0]["sampled"], name
    for name, each in found.items():
        vllm, own = each["greedy"]
        assert [list(r.tokens) for r in vllm] == [list(r.tokens) for r in own], name
        assert len({tuple(r.tokens) for r in vllm}) > 6
        print(f"{name}: log-probabilities differ by {each['gap']:.1e} nats at most (at most 1e-4)")
        assert each["gap"] < 1e-4, (name, each["gap"])
        assert each["weights"] == found["alone"]["weights"], name
        assert [r.tokens for r in each["sampled"]] == [r.tokens for r in each["again"]], name
        assert [r.tokens for r in each["sampled"]] == [r.tokens for r in found["alone"]["sampled"]], name
        groups = [tuple(map(tuple, (r.tokens for r in each["sampled"][at : at + 3]))) for at in range(0, 24, 3)]
        assert all(len(set(group)) == 3 for group in groups), "responses of a group are drawn apart"
        assert each["facts"]["dtype"] == "float32" and each["facts"]["engine_version"].startswith("0.32.")


def test_in_bf16_the_answers_stray_no_further_than_rounding(tmp_path: Path) -> None:
    source = vllm_runs.write_model(tmp_path / "hf", "qwen2", True)
    recipe = {**table.recipe(tmp_path), "model": str(source), "init_from": str(source)}
    recipe["data"] = {**recipe["data"], "seq_length": 256}
    recipe = table.variant(recipe, {"bf16": True})
    with vllm_runs.server_for(tmp_path, recipe):
        options = {"servers": str(tmp_path / "servers")}
        [found] = run_on_ranks(vllm_runs.compare, 1, recipe, options, tmp_path)
    print(f"bf16: log-probabilities differ by {found['mean']:.3f} nats in the mean (at most 0.05)")
    assert found["mean"] < 0.05 and found["facts"]["dtype"] == "bfloat16"
