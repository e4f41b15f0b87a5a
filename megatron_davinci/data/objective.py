"""What an objective needs beside its corpora, opened and checked before a process group is up. Torch-free."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xxhash import xxh3_64

from data_prep.io.registry import import_path
from megatron_davinci.config import Recipe
from megatron_davinci.data.batches import RunBatches
from megatron_davinci.models.config import ModelConfig


class ObjectiveInputs:
    """The inputs of one stage's objective. This class needs nothing but the corpora; others extend it.

    `index` is the stage's number in the recipe, and `first_step` the optimizer step of the run that it starts with.
    """

    def __init__(self, recipe: Recipe, batches: RunBatches, index: int, model: ModelConfig) -> None:
        self.recipe, self.batches, self.index, self.model = recipe, batches, index, model
        self.stage = batches.stages[index]
        self.first_step = batches.first_step(index)
        self.fingerprint = fingerprint_of(self.stage.recipe.objective.model_dump())
        """Identity of what is trained on besides the corpora: a run resumes only where it is the same."""

    def first_missing(self, step: int, end: int) -> int:
        """The first optimizer step from `step` on that cannot be trained yet for want of inputs; `end` for none."""
        return end

    def missing(self, step: int) -> str:
        """What an optimizer step lacks, and how to get it: a sentence."""
        raise NotImplementedError

    def prompt_lines(self, step: int) -> Iterator[dict[str, Any]] | None:
        """What an optimizer step needs answered, as lines of a file, a header first; None where it needs nothing."""
        return None

    def answer_file(self, step: int) -> Path | None:
        """The file that answers `prompt_lines` of a step."""
        return None

    def start(self, trainer: Any) -> Any:
        """The objective (`core.objective.Objective`) that trains with a `core.step.Trainer`. Imports torch."""
        return import_path(self.stage.recipe.objective.objective_class)(self, trainer)


def fingerprint_of(*parts: Any) -> str:
    """xxh3 of what an objective depends on; nothing for next-token prediction, which has no options."""
    return "" if parts == ({"kind": "ntp"},) else xxh3_64(repr(parts).encode()).hexdigest()


def open_inputs(recipe: Recipe, batches: RunBatches, index: int, model: ModelConfig) -> Any:
    """The inputs of a stage's objective, of the class that its options name. Raises InputError for what is missing."""
    return import_path(batches.stages[index].recipe.objective.inputs_class)(recipe, batches, index, model)
