"""Scaled RoPE is transformers' own in every form of a config.json, beyond the original length too, or refused."""

import json
from pathlib import Path
from typing import Any

import engine
import huggingface
import pytest
import torch
from conftest import write_corpus, write_model
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from data_prep import InputError
from megatron_davinci.core.rope import scaled_frequencies
from megatron_davinci.models.config import load_model_config
from megatron_davinci.rl.engines.sampling import Sampling
from megatron_davinci.testing import run_on_ranks

DOCUMENTS = [[(7 * i + d) % 251 for i in range(length)] for d, length in enumerate((200, 1, 65, 64, 33))]
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
QWEN3 = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 24}
SCALED: dict[str, dict[str, Any]] = {
    "linear, transformers 4": {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "linear, transformers 5": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e5}},
    "yarn, transformers 4": {"rope_scaling": YARN},
    "yarn, transformers 5": {"rope_parameters": {**YARN, "rope_theta": 1e6}},
    "yarn, both forms": {"rope_scaling": {**YARN, "rope_theta": 1e4}, "rope_parameters": {**YARN, "rope_theta": 1e4}},
    "yarn beside a plain form": {"rope_scaling": YARN, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "yarn, attention_factor": {"rope_scaling": {**YARN, "attention_factor": 1.5, "truncate": False}},
    "yarn, mscale": {"rope_scaling": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.0, "beta_fast": 16, "beta_slow": 2}},
    "yarn, wide heads": {**QWEN3, "rope_scaling": YARN},
    "llama3, qwen2": {"rope_scaling": LLAMA3},
    "llama3, llama": {**LLAMA, "rope_scaling": LLAMA3},
    "dynamic within its length": {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
}


def write_strong_model(folder: Path, fields: dict[str, Any]) -> Path:
    """Random weights, large enough that RoPE matters: with small ones all positions look alike."""
    write_model(folder, **{"max_position_embeddings": 256, "initializer_range": 0.2, **fields})
    written = (folder / "config.json").read_text()
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    (folder / "config.json").write_text(written)  # the form that is tested, not the one that transformers 5 writes
    return folder


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("rope")
    corpus = write_corpus(folder / "corpus", [40, 7])
    return {
        name: {
            "model": str(directory),
            "init_from": str(directory),
            "data": {"seq_length": 256, "stages": [{"name": "only", "blend": [{"corpus": str(corpus)}]}]},
            "batch": {"global_batch_size": 2},
            "schedule": {"lr": 1e-2},
            "checkpoint": {"dir": str(folder / "run")},
        }
        for name, fields in {"plain": {}, **SCALED}.items()
        if (directory := write_strong_model(folder / name.replace(" ", "_"), fields))
    }


@pytest.fixture(scope="module")
def logits(recipes: dict[str, dict[str, Any]]) -> dict[str, torch.Tensor]:
    [found] = run_on_ranks(huggingface.logits, 1, list(recipes.values()), DOCUMENTS)
    return {name: scores for name, [scores] in zip(recipes, found, strict=True)}


def transformers_logits(directory: str) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        return torch.cat([model(torch.tensor([document])).logits[0] for document in DOCUMENTS])


@pytest.mark.parametrize("name", SCALED)
def test_logits_of_packed_documents_are_transformers_own(
    recipes: dict[str, dict[str, Any]], logits: dict[str, torch.Tensor], name: str
) -> None:
    expected = transformers_logits(recipes[name]["model"])
    assert (logits[name] - expected).abs().max() < 1e-4
    if not name.startswith("dynamic"):  # a test that plain RoPE would pass proves nothing
        assert (logits["plain"] - expected).abs().max() > 1


@pytest.mark.parametrize("name", SCALED)
def test_frequencies_equal_transformers_to_the_last_bit(recipes: dict[str, dict[str, Any]], name: str) -> None:
    model = load_model_config(recipes[name]["model"])
    assert model.rope_scaling is not None
    theirs = AutoConfig.from_pretrained(recipes[name]["model"])
    frequencies, factor = ROPE_INIT_FUNCTIONS[model.rope_scaling.rope_type](theirs, "cpu")
    ours = scaled_frequencies(model.kv_channels, model.rotary_base, model.rope_scaling)
    assert ours.equal(frequencies) and model.rope_scaling.attention_factor == factor


@pytest.mark.parametrize("name", ["yarn, attention_factor", "llama3, llama", "linear, transformers 4"])
def test_the_rollout_engine_answers_as_transformers_does(recipes: dict[str, dict[str, Any]], name: str) -> None:
    asked = [(DOCUMENTS[0], [(5, [9, 8, 7]), (150, [1, 2]), (200, [3])])]
    greedy = Sampling(temperature=0.0)
    [(answers, _)] = run_on_ranks(engine.answers, 1, [recipes[name]], asked, 1, 12, greedy, [0])[0]
    model = AutoModelForCausalLM.from_pretrained(recipes[name]["model"], dtype=torch.float32)
    [(ids, prompts)], [answered] = asked, answers
    for (position, insert), [response] in zip(prompts, answered, strict=True):
        prompt = torch.tensor([[*ids[:position], *insert]])
        options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": [0], "pad_token_id": 0}
        theirs = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
        assert list(response.tokens) == theirs[0, prompt.size(1) :].tolist()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"rope_scaling": YARN, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, "leave out one of them"),
    ({"rope_scaling": YARN, "rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "leave out one of them"),
    (
        {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}},
        "give one for all, not nested",
    ),
    ({"rope_scaling": {"type": "yarn", "rope_type": "linear", "factor": 2.0}}, "a rope_type and a type that differ"),
    (
        {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}},
        "scales RoPE .*known: plain RoPE, and linear, dynamic",
    ),
    ({"rope_scaling": {"rope_type": "yarn"}}, "with factor None; it must be a number"),
    ({"rope_scaling": {"rope_type": "linear", "factor": True}}, "with factor True; it must be a number"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "a factor >= 1"),
    ({"partial_rotary_factor": 0.5}, "has a partial_rotary_factor"),
    ({"quantization_config": {"quant_method": "fp8"}}, "has a quantization_config: weights are read in full precision"),
]


@pytest.mark.parametrize("fields, reason", REFUSED, ids=[reason for _, reason in REFUSED])
def test_what_would_be_trained_otherwise_is_refused(tmp_path: Path, fields: dict[str, Any], reason: str) -> None:
    directory = write_model(tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **fields}))
    with pytest.raises(InputError, match=reason):
        load_model_config(str(directory))
