"""Property: a Hugging Face model is taken over as it is, has transformers' logits and gradients, and comes back so."""

from pathlib import Path
from typing import Any

import huggingface
import pytest
import torch
from conftest import write_corpus, write_model
from transformers import AutoConfig, AutoModelForCausalLM

from data_prep.corpus import Corpus
from megatron_davinci.models.config import load_model_config
from megatron_davinci.testing import run_on_ranks
from megatron_davinci.weights.to_huggingface import export_to_hf

DOCUMENTS = [[5, 17, 200, 3, 9, 88, 41], [1], [255, 0, 7, 7, 19, 230, 64, 128, 33]]
LENGTHS = [40, 7, 33, 1, 64, 50, 22]
LAYOUTS = {
    "one process": (1, {}),
    "TP2xPP2+SP": (
        4,
        {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2, "sequence_parallel": True},
    ),
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_theta": 500000.0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen2, tied, 300 tokens": {"tie_word_embeddings": True, "vocab_size": 300},
    "qwen3, heads wider than the model": {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "head_dim": 24,
    },
    "llama, one head per group": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_key_value_heads": 4,
    },
    "llama 3, tied, two groups": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "tie_word_embeddings": True,
        "rope_parameters": LLAMA3,
        "rope_scaling": LLAMA3,
    },
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A Hugging Face directory with random weights of each family."""
    folder = tmp_path_factory.mktemp("families")
    return {name: write_random_model(folder / str(i), fields) for i, (name, fields) in enumerate(FAMILIES.items())}


@pytest.fixture(scope="module")
def recipes(directories: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """For each family, a recipe over documents with a loss mask, from its weights."""
    folder = tmp_path_factory.mktemp("masked")
    masks = [[int((i // 5 + length) % 3 > 0) for i in range(length)] for length in LENGTHS]
    stage = {"name": "fine-tuning", "blend": [{"corpus": str(write_corpus(folder / "corpus", LENGTHS, masks=masks))}]}
    return [
        {
            "model": str(directory),
            "init_from": str(directory),
            "data": {"seq_length": 128, "stages": [stage]},
            "batch": {"global_batch_size": 18},
            "schedule": {"lr": 1e-2},
            "checkpoint": {"dir": str(folder / "run")},
        }
        for directory in directories.values()
    ]


@pytest.fixture(scope="module")
def logits(recipes: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Megatron's, by family."""
    [found] = run_on_ranks(huggingface.logits, 1, recipes, DOCUMENTS)
    return {family: scores for family, [scores] in zip(FAMILIES, found, strict=True)}


@pytest.fixture(scope="module", params=LAYOUTS)
def gradients(request: pytest.FixtureRequest, recipes: list[dict[str, Any]]) -> dict[str, Any]:
    """Megatron's loss and gradients, by family, in one layout."""
    ranks, megatron = LAYOUTS[request.param]
    found = run_on_ranks(huggingface.gradients, ranks, [{**values, "megatron": megatron} for values in recipes])[0]
    return dict(zip(FAMILIES, found, strict=True))


def write_random_model(folder: Path, fields: dict[str, Any]) -> Path:
    """config.json and weights, in the form that transformers writes."""
    write_model(folder, **fields)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    for name, parameter in model.named_parameters():  # fresh biases are zero, norms one: they would prove nothing
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.3)
    model.save_pretrained(folder)
    return folder


def transformers_logits(directory: Path) -> torch.Tensor:
    """Logits of each document by itself, end to end."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        return torch.cat([model(torch.tensor([document])).logits[0] for document in DOCUMENTS])


def transformers_gradients(directory: Path, corpus: Corpus) -> tuple[float, dict[str, torch.Tensor]]:
    """Mean loss over all labels that the mask marks, one document after the other, and its gradients."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    assert corpus.loss_mask is not None
    total, count = torch.zeros(()), 0
    for document in range(len(corpus)):
        ids = torch.from_numpy(corpus[document])
        start = int(corpus.starts[document])
        marked = torch.from_numpy(corpus.loss_mask[start : start + len(ids)].astype(bool))[1:]
        log_probs = model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        total, count = total - log_probs[marked].sum(), count + int(marked.sum())
    (total / count).backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return float(total.detach() / count), found


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_from_hugging_face_give_its_logits(
    directories: dict[str, Path], logits: dict[str, torch.Tensor], family: str
) -> None:
    expected = transformers_logits(directories[family])
    assert logits[family].shape == expected.shape and (logits[family] - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_and_masked_gradients_are_those_of_transformers(
    directories: dict[str, Path], recipes: list[dict[str, Any]], gradients: dict[str, Any], family: str
) -> None:
    directory = directories[family]
    corpus = Corpus(recipes[0]["data"]["stages"][0]["blend"][0]["corpus"])
    loss, found = gradients[family]
    expected_loss, expected = transformers_gradients(directory, corpus)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    model = load_model_config(str(directory))
    compared, largest = 0, max(gradient.abs().max() for gradient in expected.values())
    for mapping in model.mappings:
        for layer in range(model.num_layers if "*" in mapping.megatron else 1):
            whole = mapping.to_hf(found[mapping.megatron.replace("*", str(layer))], model)
            for name, gradient in zip(mapping.hf, whole, strict=True):
                theirs = expected[name.replace("*", str(layer))]
                # A key's bias adds the same to every score of a query: its gradient is zero but for rounding.
                scale = largest if "k_proj.bias" in name else theirs.abs().max()
                assert (gradient - theirs).abs().max() <= 2e-5 * scale, name  # each side rounds in its own way
                compared += 1
    assert compared == len(expected)


@pytest.mark.parametrize("family", ["qwen2, tied, 300 tokens", "qwen3, heads wider than the model"])
def test_the_exported_model_has_the_trained_models_logits(
    recipe_values: dict[str, Any], directories: dict[str, Path], tmp_path: Path, family: str
) -> None:
    ranks, megatron = LAYOUTS["TP2xPP2+SP"]
    model = str(directories[family])
    values = {**recipe_values, "model": model, "megatron": megatron, "batch": {"global_batch_size": 6}}
    run_on_ranks(huggingface.run, ranks, values)
    exported = tmp_path / "hf"
    export_to_hf(tmp_path / "run", exported)

    alone = {**values, "megatron": {}}  # the checkpoint is loaded into another layout than it was saved from
    [[[before, trained]]] = run_on_ranks(huggingface.logits, 1, [alone], DOCUMENTS, True)
    assert (trained - before).abs().max() > 0.01  # it has learnt something
    assert (trained - transformers_logits(exported)).abs().max() <= 1e-4
