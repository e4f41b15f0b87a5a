"""Property: the reference model's log-probability of each token is that of transformers, in every layout."""

from pathlib import Path
from typing import Any

import pytest
import references
import table
import torch
from test_convert import write_weights
from transformers import AutoModelForCausalLM

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "alone": (1, {}),
    "DP2": (2, {}),
    "TP2+SP": (2, {**table.TP2, **table.SP}),
    "PP2": (2, table.PP2),
    "PP2 interleaved": (2, {**table.PP2, "virtual_pipeline_model_parallel_size": 2}),
}
WAYS: dict[str, tuple[int, dict[str, Any]]] = {  # seq_length, and the objective's fields
    "whole trees": (256, {}),
    "trees in parts": (64, {}),
    "a sequence for each": (256, {"share_prefix": False}),
    "colder": (256, {"temperature": 0.7}),
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("reference")
    source = write_weights(folder / "hf", num_hidden_layers=4)
    return {**table.recipe(folder), "model": str(source), "init_from": str(source)}


def variant(recipe: dict[str, Any], megatron: dict[str, Any], width: int, objective: dict[str, Any]) -> dict[str, Any]:
    changed = table.variant(recipe, megatron, {"seq_length": width})
    return {**changed, "objective": {"kind": "rmt", "kl_beta": 0.1, "max_tokens": 8, **objective}}


def expected(source: Path, preamble: list[int], temperature: float) -> list[list[list[float]]]:
    """By group and response: one sequence at a time."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    asked, groups = references.questions(model.config.vocab_size)
    ids = {about.span.document: about.ids.tolist() for about in asked}
    prompt_source, found = references.prompt_source(preamble), []
    for group in groups:
        prompt = [
            *preamble,
            *ids[group.spec.document][: group.spec.position],
            *prompt_source.instruction(group.spec.budget),
        ]
        found.append([_scores(model, prompt, response.tokens, temperature) for response in group.responses])
    return found


@torch.no_grad()
def _scores(model: Any, prompt: list[int], tokens: list[int], temperature: float) -> list[float]:
    logits = model(torch.tensor([[*prompt, *tokens]])).logits[0] / temperature
    log_probs = logits.float().log_softmax(1)[len(prompt) - 1 : -1]
    return [float(row[token]) for row, token in zip(log_probs, tokens, strict=True)]


@pytest.mark.parametrize("preamble", [[], [11, 12]], ids=["text first", "template first"])
def test_reference_log_probabilities(recipe: dict[str, Any], preamble: list[int]) -> None:
    wanted = {
        (layout, way): (ranks, variant(recipe, megatron, width, objective))
        for layout, (ranks, megatron) in LAYOUTS.items()
        for way, (width, objective) in WAYS.items()
    }
    found = table.run_all(wanted, references.scored, preamble)
    right = {t: expected(Path(recipe["model"]), preamble, t) for t in (1.0, 0.7)}
    for (layout, way), ranks in found.items():
        for rank in ranks:  # all know all
            groups = right[0.7 if way == "colder" else 1.0]
            assert len(rank) == len(groups) == 9
            for group, responses in zip(rank, groups, strict=True):
                for response, log_probs in zip(group.responses, responses, strict=True):
                    assert response.reference_log_probs == pytest.approx(log_probs, rel=1e-5, abs=1e-4), (layout, way)
