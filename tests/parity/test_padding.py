"""Property: padding weighs nothing. Rows that are nine tenths padding give the gradients of rows that are full.

FP8 scales whole tensors or blocks by their largest value, padding's among them: its lines want a GPU.
"""

from pathlib import Path
from typing import Any

import layouts
import pytest
import torch
from conftest import write_corpus, write_model

from megatron_davinci.core import device
from megatron_davinci.testing import run_on_ranks

LENGTHS = [100, 128, 37, 90, 64, 7, 120, 33, 2, 61]  # 642 tokens: six sequences of 128, or one of 4,096
PRECISIONS = {
    "fp32": {},
    "bf16": {"bf16": True},
    "fp8 tensorwise": {"bf16": True, "fp8": "hybrid", "fp8_recipe": "tensorwise"},
    "fp8 blockwise": {"bf16": True, "fp8": "hybrid", "fp8_recipe": "blockwise"},
}


def padded(folder: Path, seq_length: int, megatron: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": str(write_model(folder / "model", intermediate_size=128)),
        "megatron": megatron,
        "data": {
            "seq_length": seq_length,
            "stages": [{"name": "s", "blend": [{"corpus": str(folder / "corpus")}]}],
        },
        "batch": {"global_batch_size": len(LENGTHS)},
        "schedule": {"lr": 1e-2},
        "checkpoint": {"dir": str(folder / "run")},
    }


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with a corpus, and what full rows give in fp32."""
    folder = tmp_path_factory.mktemp("padding")
    write_corpus(folder / "corpus", LENGTHS)
    return folder, measure(folder, 128, {})


def measure(folder: Path, seq_length: int, megatron: dict[str, Any]) -> dict[str, Any]:
    [[found]] = run_on_ranks(layouts.measure, 1, [padded(folder, seq_length, megatron)])
    return found


@pytest.mark.parametrize(
    "precision", [pytest.param(name, marks=pytest.mark.gpu) if "fp8" in name else name for name in PRECISIONS]
)
def test_padding_changes_no_gradient(reference: tuple[Path, dict[str, Any]], precision: str) -> None:
    if "fp8" in precision and (reason := device.why_no_fp8()):
        pytest.skip(reason)
    folder, exact = reference
    full, sparse = (measure(folder, length, PRECISIONS[precision]) for length in (128, 4096))
    assert full["labels"] == sparse["labels"] == sum(LENGTHS) - len(LENGTHS)
    error, error_with_padding = (
        layouts.relative_difference(found["gradients"], exact["gradients"]) for found in (full, sparse)
    )
    assert error_with_padding <= (1e-5 if precision == "fp32" else 1.5 * error)
    norms = [found["steps"][0][1] for found in (full, sparse)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-5 if precision == "fp32" else 2e-2)


def test_a_padding_token_that_is_huge_reaches_nothing(reference: tuple[Path, dict[str, Any]]) -> None:
    """Control: the embedding of the id that pads is a million times the others', and no document has it."""
    folder, _ = reference
    [(same, finite)] = run_on_ranks(gradients_with_huge_padding, 1, padded(folder, 256, {}))
    assert same and finite


def gradients_with_huge_padding(values: dict[str, Any]) -> tuple[bool, bool]:
    """Are gradients the same with a huge embedding of id 0, and finite?"""
    from megatron_davinci.config import parse_recipe
    from megatron_davinci.core.build_trainer import build_trainer
    from megatron_davinci.core.groups import model_parallel, world
    from megatron_davinci.core.next_token import next_token_batch
    from megatron_davinci.core.optimizer import unwrap
    from megatron_davinci.data.batches import RunBatches
    from megatron_davinci.models.config import load_model_config
    from megatron_davinci.testing.gather import gather_gradients

    recipe = parse_recipe(values)
    with world(), model_parallel(recipe.stage(0), seed=0) as here:
        batches = RunBatches(recipe).stages[0]
        trainer = build_trainer(recipe, batches.recipe, load_model_config(recipe.model), here)
        work = next_token_batch(batches, 0, here)
        for batch in work.micro_batches:  # documents get another id in place of the one that pads
            documents = torch.zeros_like(batch.tokens, dtype=torch.bool)
            documents[0, batch.rows] = True
            batch.tokens[documents & (batch.tokens == 0)] = 1
        found = []
        for size in (1.0, 1e6):
            [model] = unwrap(trainer.chunks)
            model.embedding.word_embeddings.weight.data[0] *= size
            trainer.gradients(work)
            found.append({name: gradient.clone() for name, gradient in gather_gradients(trainer).items()})
        first, huge = found
        same = all(torch.equal(first[name], gradient) for name, gradient in huge.items())
        return same, all(bool(gradient.isfinite().all()) for gradient in huge.values())
