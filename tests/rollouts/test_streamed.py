"""Property: every layout streams the same tensors, those of the Hugging Face file; the probe's forward is exact."""

from pathlib import Path
from typing import Any

import pytest
import streamed
import table
import torch
import vllm_runs
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from megatron_davinci.serve.digests import combine_digests, tensor_digest
from megatron_davinci.testing import run_on_ranks

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "alone": (1, {}),
    "TP2+SP": (2, {**table.TP2, **table.SP}),
    "PP2 interleaved": (2, {**table.PP2, "virtual_pipeline_model_parallel_size": 2}),
    "TP2xPP2": (4, {**table.TP2, **table.PP2}),
    "DP2xTP2 overlapped": (4, {**table.TP2, **table.DISTRIBUTED, **table.OVERLAP}),
}


def recipe_of(folder: Path, family: str, tied: bool) -> dict[str, Any]:
    source = vllm_runs.write_model(folder / f"{family}-{tied}", family, tied)
    return {**table.recipe(folder / f"of-{family}-{tied}"), "model": str(source), "init_from": str(source)}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_streams_the_tensors_of_the_file(name: str, tmp_path: Path) -> None:
    ranks, fields = LAYOUTS[name]
    kinds = [("qwen2", False), ("qwen2", True), ("qwen3", False), ("llama", True)]
    recipes = [table.variant(recipe_of(tmp_path, *kind), fields) for kind in kinds]
    found = run_on_ranks(streamed.stream, ranks, recipes)
    for number, recipe in enumerate(recipes):
        announced, digests, fingerprint = found[0][number]
        held = load_file(Path(recipe["model"]) / "model.safetensors")
        assert digests == {key: tensor_digest(value) for key, value in held.items()}
        assert sorted(key for key, _, _ in announced) == sorted(held)
        assert fingerprint == combine_digests({key: tensor_digest(value) for key, value in held.items()})
        layers = [int(key.split(".")[2]) for key, _, _ in announced if key.startswith("model.layers.")]
        assert layers == sorted(layers), "layer by layer"
        assert all(rank[number][1] == {} for rank in found[1:])


def test_bf16_weights_stream_in_their_own_type(tmp_path: Path) -> None:
    recipe = table.variant(recipe_of(tmp_path, "qwen2", False), {"bf16": True})
    [[(announced, digests, _)]] = run_on_ranks(streamed.stream, 1, [recipe])
    held = load_file(Path(recipe["model"]) / "model.safetensors")
    assert {kind for _, kind, _ in announced} == {"bfloat16"}
    assert digests == {key: tensor_digest(value.bfloat16()) for key, value in held.items()}


@pytest.mark.parametrize("name", ["alone", "TP2+SP", "PP2 interleaved"])
def test_a_continuation_is_scored_as_transformers_does(name: str, tmp_path: Path) -> None:
    ranks, fields = LAYOUTS[name]
    recipe = recipe_of(tmp_path, "qwen2", True)
    prompt, tokens = vllm_runs.PROMPTS[2], vllm_runs.PROMPTS[1]
    found = run_on_ranks(streamed.score, ranks, table.variant(recipe, fields), prompt, tokens)
    model = AutoModelForCausalLM.from_pretrained(recipe["model"], dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].double()
    expected = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()
    for scores in found:
        assert scores == pytest.approx(expected, abs=1e-4)


def test_what_one_rank_does_for_long_all_hear_of(tmp_path: Path) -> None:
    for fails, expected in ((False, 7), (True, "it is broken")):
        found = run_on_ranks(streamed.one_works, 2, fails, str(tmp_path / "mark"))
        assert [result for result, _ in found] == [expected, expected]
        assert all(heard >= 2 for _, heard in found)
