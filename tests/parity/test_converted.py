"""A converted checkpoint is the model it was made of: for Megatron in every layout, and back from each of them."""

from pathlib import Path
from typing import Any

import converted
import huggingface
import layouts
import numpy as np
import pytest
import table
import torch
from test_convert import weights, write_weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_davinci.testing import run_on_ranks
from megatron_davinci.testing.smollm2 import write_smollm2
from megatron_davinci.weights.compare import differences
from megatron_davinci.weights.conversion import ConversionOptions
from megatron_davinci.weights.to_huggingface import export_to_hf
from megatron_davinci.weights.to_megatron import import_from_hf

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "TP1": (1, {}),
    "TP2": (2, table.TP2),
    "PP2": (2, table.PP2),
    "TP2xPP2": (4, {**table.TP2, **table.PP2}),
    "TP2xPP2 interleaved": (4, {**table.TP2, **table.PP2, "virtual_pipeline_model_parallel_size": 2}),
}
TEXT = "The quick brown fox jumps over the lazy dog. In 1969, people first walked on the Moon:\n\n    def f(x):\n"


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Runs that begin with a Hugging Face directory, beside which `megatron` is what that was converted to."""
    found = {}
    kinds: dict[str, dict[str, Any]] = {"qwen2": {}, "qwen3": {"tie_word_embeddings": True, "vocab_size": 300}}
    for model_type, kind in kinds.items():
        folder = tmp_path_factory.mktemp(model_type)
        source = write_weights(folder / "hf", num_hidden_layers=8, model_type=model_type, **kind)
        import_from_hf(source, folder / "megatron", ConversionOptions(shard_bytes=40_000))
        found[model_type] = {**table.recipe(folder), "model": str(source), "init_from": str(source)}
    return found


def in_layouts(values: dict[str, Any]) -> dict[str, tuple[int, dict[str, Any]]]:
    return {name: (ranks, table.variant(values, fields)) for name, (ranks, fields) in LAYOUTS.items()}


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_megatron_loads_what_was_converted(recipes: dict[str, dict[str, Any]], family: str) -> None:
    recipe = recipes[family]
    other = {key: value for key, value in recipe.items() if key != "init_from"}
    checkpoint = str(Path(recipe["model"]).with_name("megatron"))
    found = table.run_all(in_layouts(other), converted.weights, checkpoint)
    [[expected]] = table.run_all({"begun": (1, recipe)}, converted.weights, None).values()
    assert len(expected) > 10
    for loaded, *_ in found.values():
        assert loaded.keys() == expected.keys() and all(np.array_equal(loaded[n], expected[n]) for n in loaded)


def test_training_begins_with_a_checkpoint_as_with_its_source(recipes: dict[str, dict[str, Any]]) -> None:
    """The same loss, gradients, and weights after three steps, to the last bit."""
    recipe = recipes["qwen2"]
    converted_to = str(Path(recipe["model"]).with_name("megatron"))
    fields = LAYOUTS["TP2xPP2"][1]
    both = [table.variant({**recipe, "init_from": start}, fields) for start in (recipe["model"], converted_to)]
    [one, other] = run_on_ranks(layouts.measure, 4, both)[0]
    assert one["loss"] == other["loss"]
    for kind in ("gradients", "weights"):
        assert all(np.array_equal(array, other[kind][name]) for name, array in one[kind].items())


def test_every_layouts_checkpoint_exports_to_the_same_files(recipes: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    beside = tmp_path / "tokenizer"
    beside.mkdir()
    (beside / "generation_config.json").write_text("{}")
    recipe = {**recipes["qwen3"], "tokenizer": str(beside)}
    runs = {name: tmp_path / name.replace(" ", "-") for name in LAYOUTS}
    wanted = {
        name: (ranks, {**values, "checkpoint": {"dir": str(runs[name])}})
        for name, (ranks, values) in in_layouts(recipe).items()
    }
    table.run_all(wanted, converted.save)
    trained = {}
    for name, run in runs.items():
        begun, exported = run.with_name(f"{run.name}-begun"), run.with_name(f"{run.name}-hf")
        export_to_hf(run / "step_0000001", begun)
        assert differences(begun, Path(recipe["model"])) == []  # to the last bit
        assert export_to_hf(run, exported) == run / "step_0000002"
        assert (exported / "generation_config.json").read_text() == "{}"  # comes along through training
        trained[name] = {key: tensor.numpy() for key, tensor in weights(exported).items()}
    assert layouts.relative_difference(trained["TP1"], {k: t.numpy() for k, t in weights(begun).items()}) > 1e-4
    for name in LAYOUTS:
        assert layouts.relative_difference(trained[name], trained["TP1"]) <= 1e-5


def test_a_real_model_keeps_its_logits(tmp_path: Path) -> None:
    source = write_smollm2(tmp_path / "hf")
    import_from_hf(source, tmp_path / "megatron")
    values = {**table.recipe(tmp_path), "model": str(source), "init_from": str(tmp_path / "megatron")}
    ids = AutoTokenizer.from_pretrained(source)(TEXT)["input_ids"]
    [[[found]]] = run_on_ranks(huggingface.logits, 1, [values], [ids])
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        expected = model(torch.tensor([ids])).logits[0]
    assert found.shape == expected.shape and (found - expected).abs().max() <= 1e-4
