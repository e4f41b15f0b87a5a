"""What the training loop knows of an objective."""

from abc import ABC, abstractmethod
from typing import Any

from megatron_davinci.core.step import GlobalBatch, Trainer


class Objective(ABC):
    """Makes the global batches of one stage. `inputs` are its `data.objective.ObjectiveInputs`.

    All ranks call each method together.
    """

    def __init__(self, inputs: Any, trainer: Trainer) -> None:
        self.inputs, self.trainer = inputs, trainer
        self.stage = inputs.stage

    def resume(self, step: int) -> None:  # noqa: B027  # most objectives have nothing to do
        """Called once, before the first batch: `step` optimizer steps of the run are done."""

    @abstractmethod
    def batch(self, step: int) -> GlobalBatch:
        """The global batch of step `step` of the stage, from 0. Raises InputError on every rank for inputs that do not
        fit."""
