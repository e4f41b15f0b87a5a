"""Checkpoints of a run: RUN/step_NNNNNNN/ appears by rename when it is complete, then RUN/latest names it.

A checkpoint is Megatron's torch_dist format, and beside it recipe.yaml (resolved), progress.json (steps done, identity
of model and data, ledger), hf/ (config.json and tokenizer: what an export needs), and manifest.json (bytes and xxh3 of
every file, written last).
"""

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.serialization import (
    get_default_load_sharded_strategy,
    get_default_save_sharded_strategy,
)
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelLoadStrategyWrapper,
    FullyParallelSaveStrategyWrapper,
)
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer

from data_prep.files import PART, write_json
from megatron_davinci import device
from megatron_davinci.checkpoint.files import (
    PROGRESS_FILE,
    check_checkpoint,
    copy_tokenizer,
    latest_checkpoint,
    prune,
    take_inventory,
)
from megatron_davinci.models.config import ModelConfig
from megatron_davinci.recipe import Recipe, dump_recipe
from megatron_davinci.train.optimizer import Chunks, unwrap
from megatron_davinci.train.parallel import is_main_rank

# The state of the distributed optimizer in a form that any layout can load.
_CONTENT = {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}


class CheckpointManager:
    """Saves and restores model and optimizer of one run. All ranks call `save` and `load` together."""

    def __init__(self, recipe: Recipe, config: ModelConfig, chunks: Chunks, optimizer: MegatronOptimizer) -> None:
        self._recipe, self._config = recipe, config
        self._models, self._optimizer = unwrap(chunks), optimizer
        self.directory = Path(recipe.checkpoint.dir)

    def save(self, step: int, progress: dict[str, Any]) -> None:
        """Write the checkpoint of `step` finished steps; `progress` is the main rank's."""
        final = self.directory / f"step_{step:07d}"
        part = final.with_name(final.name + PART)
        if is_main_rank():
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        dist.barrier()
        strategy = FullyParallelSaveStrategyWrapper(get_default_save_sharded_strategy("torch_dist"), _replicas())
        dist_checkpointing.save(self._sharded_state(loading=False), str(part), strategy, content_metadata=_CONTENT)
        if is_main_rank():
            self._complete(part, final, progress)
        dist.barrier()

    def load(self) -> None:
        """Restore model and optimizer from the latest checkpoint, which is checked for damage first."""
        directory = latest_checkpoint(self.directory)
        assert directory is not None
        if is_main_rank():
            check_checkpoint(directory)
        dist.barrier()
        strategy = get_default_load_sharded_strategy(str(directory))
        if device.has_gpu():  # replicas read a part each and exchange them, through GPU memory
            strategy = FullyParallelLoadStrategyWrapper(strategy, _replicas())
        state = dist_checkpointing.load(self._sharded_state(loading=True), str(directory), strategy)
        for name, model in self._named_models():
            model.load_state_dict(state[name])
        with torch.no_grad():
            self._optimizer.load_state_dict(state["optimizer"])

    def _named_models(self) -> list[tuple[str, GPTModel]]:
        """Megatron's names: "model", or one for each chunk of an interleaved stage."""
        if len(self._models) == 1:
            return [("model", self._models[0])]
        return [(f"model{number}", model) for number, model in enumerate(self._models)]

    def _sharded_state(self, loading: bool) -> dict[str, Any]:
        models = {name: model.sharded_state_dict(metadata=_CONTENT) for name, model in self._named_models()}
        # given the models' whole state, the optimizer finds each shard's parameter by identity
        optimizer = self._optimizer.sharded_state_dict(models, is_loading=loading, metadata=_CONTENT)
        return {**models, "optimizer": optimizer}

    def _complete(self, part: Path, final: Path, progress: dict[str, Any]) -> None:
        (part / "recipe.yaml").write_text(dump_recipe(self._recipe))
        write_json(part / PROGRESS_FILE, progress)
        (part / "hf").mkdir()
        write_json(part / "hf" / "config.json", self._config.huggingface)
        if self._recipe.tokenizer_directory is not None:
            copy_tokenizer(self._recipe.tokenizer_directory, part / "hf")
        write_json(part / "manifest.json", {"files": take_inventory(part)})
        if final.exists():
            shutil.rmtree(final)  # the same step of an earlier attempt, past which the run fell back
        part.replace(final)
        pointer = self.directory / f"latest{PART}"
        pointer.write_text(final.name + "\n")
        pointer.replace(self.directory / "latest")
        prune(final, self._recipe.checkpoint.keep)


def _replicas() -> dist.ProcessGroup:
    """The ranks that hold the same shards of the model: they share the work of saving and loading."""
    group: dist.ProcessGroup = parallel_state.get_data_parallel_group(with_context_parallel=True)
    return group
