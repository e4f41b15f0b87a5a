"""Checkpoints of a run: RUN/step_NNNNNNN/ appears by rename when it is complete, then RUN/latest names it.

A checkpoint is Megatron's torch_dist format, and beside it recipe.yaml (resolved), hf/ (config.json and tokenizer: what
an export needs), and manifest.json (bytes and xxh3 of every file, written last).
"""

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer

from data_prep.files import PART, write_json
from megatron_davinci.checkpoint.files import check_checkpoint, copy_tokenizer, latest_checkpoint, prune, take_inventory
from megatron_davinci.models.config import ModelConfig
from megatron_davinci.recipe import Recipe, dump_recipe
from megatron_davinci.train.parallel import is_main_rank


class CheckpointManager:
    """Saves and restores model, optimizer and progress of one run. All ranks call `save` and `load` together."""

    def __init__(
        self, recipe: Recipe, config: ModelConfig, model: DistributedDataParallel, optimizer: MegatronOptimizer
    ) -> None:
        self._recipe, self._config = recipe, config
        self._model, self._optimizer = model, optimizer
        self.directory = Path(recipe.checkpoint.dir)

    def save(self, step: int, progress: dict[str, Any]) -> None:
        """Write the checkpoint of `step` finished steps; `progress` must be the same on all ranks."""
        final = self.directory / f"step_{step:07d}"
        part = final.with_name(final.name + PART)
        if is_main_rank():
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        dist.barrier()
        dist_checkpointing.save({**self._sharded_state(loading=False), "progress": progress}, str(part))
        if is_main_rank():
            self._complete(part, final)
        dist.barrier()

    def read_progress(self) -> dict[str, Any] | None:
        """Progress of the latest checkpoint, which is checked for damage first; None where the run has none yet."""
        directory = latest_checkpoint(self.directory)
        if directory is None:
            return None
        if is_main_rank():
            check_checkpoint(directory)
        dist.barrier()
        progress: dict[str, Any] = dist_checkpointing.load_common_state_dict(str(directory))["progress"]
        return progress

    def load(self) -> None:
        """Restore model and optimizer from the latest checkpoint, which `read_progress` has found."""
        directory = latest_checkpoint(self.directory)
        assert directory is not None
        state = dist_checkpointing.load(self._sharded_state(loading=True), str(directory))
        self._model.module.load_state_dict(state["model"])
        with torch.no_grad():
            self._optimizer.load_state_dict(state["optimizer"])

    def _sharded_state(self, loading: bool) -> dict[str, Any]:
        model = self._model.module.sharded_state_dict()
        return {"model": model, "optimizer": self._optimizer.sharded_state_dict(model, is_loading=loading)}

    def _complete(self, part: Path, final: Path) -> None:
        (part / "recipe.yaml").write_text(dump_recipe(self._recipe))
        (part / "hf").mkdir()
        write_json(part / "hf" / "config.json", self._config.huggingface)
        copy_tokenizer(Path(self._recipe.tokenizer or self._recipe.model), part / "hf")
        write_json(part / "manifest.json", {"files": take_inventory(part)})
        if final.exists():
            shutil.rmtree(final)  # the same step of an earlier attempt, past which the run fell back
        part.replace(final)
        pointer = self.directory / f"latest{PART}"
        pointer.write_text(final.name + "\n")
        pointer.replace(self.directory / "latest")
        prune(final, self._recipe.checkpoint.keep)
