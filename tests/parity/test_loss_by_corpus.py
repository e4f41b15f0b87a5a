"""Loss by corpus: that of each corpus's documents alone, in every layout, and together the loss."""

from pathlib import Path
from typing import Any

import by_corpus
import pytest
from conftest import write_corpus

from megatron_davinci.testing import run_on_ranks

LAYOUTS: list[dict[str, Any]] = [
    {},
    {"context_parallel_size": 2},
    {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    {"pipeline_model_parallel_size": 2},
    {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2},
]


def test_each_corpus_has_the_loss_of_its_own_documents(recipe_values: dict[str, Any], tmp_path: Path) -> None:
    others = [
        write_corpus(tmp_path / "other" / name, [9, 64, 30, 1, 25], seed) for seed, name in ((1, "corpus"), (2, "b"))
    ]
    blend = recipe_values["data"]["stages"][0]["blend"]
    blend += [{"corpus": str(others[0]), "repeat": 2}, {"corpus": str(others[1])}]
    recipe_values["batch"] = {"global_batch_size": 33}
    [(expected, labels)] = run_on_ranks(by_corpus.measure_alone, 1, recipe_values)
    together = sum(labels[name] * expected[name] for name in expected) / sum(labels.values())
    parent = tmp_path.name
    assert list(expected) == [f"{parent}/corpus", "other/corpus", "b"]
    recipes = [{**recipe_values, "megatron": layout} for layout in LAYOUTS]
    for rank in run_on_ranks(by_corpus.measure, 2, recipes):
        for layout, found in zip(LAYOUTS, rank, strict=True):
            assert found["losses"] == pytest.approx(expected, rel=1e-5), layout
            assert found["loss"] == pytest.approx(together, rel=1e-5) and len(set(expected.values())) == 3


def test_one_corpus_is_not_told_twice(recipe_values: dict[str, Any]) -> None:
    [[found]] = run_on_ranks(by_corpus.measure, 1, [recipe_values])
    assert list(found) == ["loss"]
