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

    def load_state(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Called before `resume` with what `state` gave when the checkpoint was saved, that the run goes on from."""

    def state(self) -> dict[str, Any]:
        """Values for JSON that a checkpoint keeps."""
        return {}

    def settle(self) -> None:  # noqa: B027
        """Called before a checkpoint is saved, unless a signal ends the run: what is under way for later steps is
        completed."""

    def close(self) -> None:  # noqa: B027
        """Called after the last batch of the stage, and when the run ends, however it does."""

    @abstractmethod
    def batch(self, step: int) -> GlobalBatch:
        """The global batch of step `step` of the stage, from 0. Raises InputError on every rank for inputs that do not
        fit."""
