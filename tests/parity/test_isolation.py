"""Law: packed documents never see each other, on any pipeline stage."""

from typing import Any

import isolation
import pytest

from megatron_davinci.testing import run_on_ranks


@pytest.mark.parametrize("pipeline", [1, 2])
def test_a_changed_document_changes_nothing_of_the_others(recipe_values: dict[str, Any], pipeline: int) -> None:
    values = {**recipe_values, "megatron": {"pipeline_model_parallel_size": pipeline}}
    measured = run_on_ranks(isolation.measure, pipeline, values)[-1]
    first, original, changed = (measured[key] for key in ("first", "original", "changed"))
    before, after = original["logits"], changed["logits"]
    assert not before[first].equal(after[first])  # the change is one
    assert before[first.stop :].equal(after[first.stop :])
    for name, gradient in original["gradients"].items():
        assert gradient.equal(changed["gradients"][name]), name
    assert any(gradient.abs().max() > 0 for gradient in original["gradients"].values())
