"""Law: the exported model is the trained one, and a Hugging Face model is taken over as it is."""

from pathlib import Path
from typing import Any

import huggingface
import pytest
import torch
from conftest import write_model
from transformers import AutoConfig, AutoModelForCausalLM

from megatron_davinci.checkpoint.convert import export_to_hf
from megatron_davinci.testing import run_on_ranks

DOCUMENTS = [[5, 17, 200, 3, 9, 88, 41], [1], [255, 0, 7, 7, 19, 230, 64, 128, 33]]
LAYOUTS = {
    "one process": (1, {}),
    "TP2xPP2+SP": (
        4,
        {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2, "sequence_parallel": True},
    ),
}


def transformers_logits(directory: Path) -> torch.Tensor:
    """Logits of each document by itself, end to end."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        return torch.cat([model(torch.tensor([document])).logits[0] for document in DOCUMENTS])


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_weights_from_hugging_face_give_its_logits(recipe_values: dict[str, Any], tmp_path: Path, tied: bool) -> None:
    directory = write_model(tmp_path / "random", tie_word_embeddings=tied)
    torch.manual_seed(0)
    source = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
    for name, parameter in source.named_parameters():  # fresh biases are zero, norms one: they would prove nothing
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.3)
    source.save_pretrained(directory)
    values = {**recipe_values, "model": str(directory), "init_from": str(directory)}
    [found] = run_on_ranks(huggingface.logits, 1, values, DOCUMENTS)
    assert (found - transformers_logits(directory)).abs().max() <= 1e-4


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_exported_model_has_the_trained_models_logits(
    recipe_values: dict[str, Any], tmp_path: Path, layout: str, tied: bool
) -> None:
    ranks, megatron = LAYOUTS[layout]
    model = str(write_model(tmp_path / "model", tie_word_embeddings=tied))
    values = {**recipe_values, "model": model, "megatron": megatron, "batch": {"global_size": 6}}
    run_on_ranks(huggingface.run, ranks, values)
    exported = tmp_path / "hf"
    export_to_hf(tmp_path / "run", exported, tokenizer=None)

    alone = {**values, "megatron": {}}  # the checkpoint is loaded into another layout than it was saved from
    before, trained = (run_on_ranks(huggingface.logits, 1, alone, DOCUMENTS, flag)[0] for flag in (False, True))
    assert (trained - before).abs().max() > 0.01  # it has learnt something
    assert (trained - transformers_logits(exported)).abs().max() <= 1e-4
