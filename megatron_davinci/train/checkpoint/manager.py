"""Checkpoints of a run: RUN/step_NNNNNNN/ appears by rename when it is complete, then RUN/latest names it.

A checkpoint is Megatron's torch_dist format, and beside it recipe.yaml (resolved), progress.json (steps done, identity
of model and data, ledger), hf/ (config.json and tokenizer: what an export needs), and manifest.json (bytes and xxh3 of
every file, written last).
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.serialization import get_default_save_sharded_strategy
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from megatron.core.fp8_utils import get_fp8_recipe
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer
from torch.distributed.checkpoint.api import CheckpointException

from data_prep import WorkFailed
from data_prep.io.errors import is_full_disk
from data_prep.io.files import flush_tree, part_of, publish, read_json, write_json
from megatron_davinci.config import Recipe, dump_recipe
from megatron_davinci.core import device
from megatron_davinci.core.adam import parts_of
from megatron_davinci.core.groups import is_main_rank, sync_errors
from megatron_davinci.core.optimizer import Chunks, unwrap
from megatron_davinci.core.patches import end_writer_with_rank
from megatron_davinci.models.config import ModelConfig
from megatron_davinci.train.checkpoint.extra_state import rebuild_extra_states, transformer_engine_may_unpickle
from megatron_davinci.train.checkpoint.loading import load_state
from megatron_davinci.weights.checkpoint_files import (
    PROGRESS_FILE,
    copy_generation,
    copy_tokenizer,
    name_latest,
    prune_checkpoints,
    take_inventory,
)
from megatron_davinci.weights.paths import latest_checkpoint

_WRITTEN = "written-by-rank-"  # notes of a checkpoint that is not finished
_FULL_DISK = 16 << 20  # bytes that are left of a disk on which nothing more fits
# Megatron-Core's own writer: from 0.17 on it takes that of NVIDIA's resiliency extension where it is not told.
_OWN_WRITER = {"async_strategy": "mcore"} if "async_strategy" in signature(dist_checkpointing.save).parameters else {}
# The state of the distributed optimizer in a form that any layout can load. Megatron adds groups to what it is given.
_CONTENT = {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}


class CheckpointManager:
    """Saves and restores model and optimizer of one run. All ranks call each method together."""

    def __init__(self, recipe: Recipe, config: ModelConfig, chunks: Chunks, optimizer: MegatronOptimizer) -> None:
        self._recipe, self._config = recipe, config
        self._models, self._optimizer = unwrap(chunks), optimizer
        self._calls = AsyncCallsQueue()
        self.directory = Path(recipe.checkpoint.dir)

    def save(self, step: int, progress: dict[str, Any]) -> None:
        """Write the checkpoint of `step` finished steps; `progress` is the main rank's.

        Where the recipe says asynchronously, processes of their own write the weights as they are now, and `poll` or
        `finish` gives the checkpoint its name.
        """
        self.finish()
        end_writer_with_rank()
        final = self.directory / f"step_{step:07d}"
        part = part_of(final)
        if is_main_rank():
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        dist.barrier()
        for each in parts_of(self._optimizer):
            each.init_state_fn(each.optimizer, each.config)  # zeros for what no step has touched: all may be skipped
        strategy = FullyParallelSaveStrategyWrapper(get_default_save_sharded_strategy("torch_dist"), _replicas())
        state = self._sharded_state(loading=False)
        request = dist_checkpointing.save(
            state, str(part), strategy, content_metadata=dict(_CONTENT), async_sharded_save=True, **_OWN_WRITER
        )
        assert request is not None
        if is_main_rank():
            self._write_beside(part, progress)
        request.add_finalize_fn(partial(self._complete, part, final))
        request = request._replace(async_fn=partial(_write_and_look, request.async_fn, part, dist.get_rank()))
        if self._recipe.checkpoint.async_save:
            self._calls.schedule_async_request(request)
        else:
            with self._told():
                request.execute_sync()

    def poll(self) -> None:
        """Complete the checkpoint that is being written, if every rank has written its part."""
        if self._calls.get_num_unfinalized_calls():
            with self._told():
                self._calls.maybe_finalize_async_calls(blocking=False)

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, and complete it."""
        with self._told():
            self._calls.maybe_finalize_async_calls(blocking=True)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Raise WorkFailed where a rank could not write: Megatron's own exception is no Exception."""
        try:
            yield
        except (CheckpointException, OSError) as fault:
            self._calls = AsyncCallsQueue()  # what has failed is not waited for again
            raise self.not_written(fault) from None

    def not_written(self, fault: BaseException) -> WorkFailed:
        """What to say where nothing more could be written to the run's directory, and what is left."""
        full = is_full_disk(fault) or shutil.disk_usage(self.directory).free < _FULL_DISK
        why = "the disk is full" if full else str(fault).strip().splitlines()[-1]
        latest = latest_checkpoint(self.directory)
        return WorkFailed(
            f"{self.directory} could not be written to, {why}: the last good checkpoint is "
            f"{latest.name if latest else 'none'}; mend that, and start the same command again"
        )

    def load(self, directory: Path) -> None:
        """Restore model and optimizer from a checkpoint. Raises InputError, on every rank, where it does not fit."""
        # Replicas read a part each and exchange them, through GPU memory.
        state = load_state(self._sharded_state(loading=True), directory, _replicas() if device.has_gpu() else None)
        for name, model in self._named_models():
            with sync_errors():
                recipe = get_fp8_recipe(model.config) if model.config.fp8 else None
                layers = rebuild_extra_states(state[name], recipe, str(directory))
            with transformer_engine_may_unpickle():
                model.load_state_dict(layers)
        with torch.no_grad():
            self._optimizer.load_state_dict(state["optimizer"])

    def _named_models(self) -> list[tuple[str, GPTModel]]:
        """Megatron's names: "model", or one for each chunk of an interleaved stage."""
        if len(self._models) == 1:
            return [("model", self._models[0])]
        return [(f"model{number}", model) for number, model in enumerate(self._models)]

    def _sharded_state(self, loading: bool) -> dict[str, Any]:
        models = {name: model.sharded_state_dict(metadata=dict(_CONTENT)) for name, model in self._named_models()}
        # given the models' whole state, the optimizer finds each shard's parameter by identity
        optimizer = self._optimizer.sharded_state_dict(models, is_loading=loading, metadata=dict(_CONTENT))
        return {**models, "optimizer": optimizer}

    def _write_beside(self, part: Path, progress: dict[str, Any]) -> None:
        (part / "recipe.yaml").write_text(dump_recipe(self._recipe))
        write_json(part / PROGRESS_FILE, progress)
        (part / "hf").mkdir()
        write_json(part / "hf" / "config.json", self._config.huggingface)
        tokenizer = self._recipe.find_tokenizer()
        if tokenizer is not None:
            copy_tokenizer(tokenizer, part / "hf")
            copy_generation(tokenizer, part / "hf")

    def _complete(self, part: Path, final: Path) -> None:
        """The main rank gives the checkpoint its name, once every rank has written its part, and looked at it."""
        if is_main_rank():
            files = _take_together(part)
            files |= take_inventory(part, lambda name: name not in files)
            write_json(part / "manifest.json", {"files": files})
            flush_tree(part)  # so that the moment without either is short
            if final.exists():
                shutil.rmtree(final)  # the same step of an earlier attempt, past which the run fell back
            publish(part, final)
            name_latest(final)
            options = self._recipe.checkpoint
            prune_checkpoints(final, options.save_total_limit, options.save_retain_interval)
        dist.barrier()


def _write_and_look(write: Callable[..., None] | None, part: Path, rank: int, *arguments: Any, **named: Any) -> None:
    """What Megatron does to write a rank's files, then their hashes beside them: both where training need not wait."""
    if write is not None:
        write(*arguments, **named)
    with suppress(OSError):  # what no note is of, the main rank will look at
        write_json(part / f"{_WRITTEN}{rank}.json", take_inventory(part, lambda name: name.startswith(f"__{rank}_")))


def _take_together(part: Path) -> dict[str, Any]:
    """What all ranks have noted of their files; the notes go."""
    files: dict[str, Any] = {}
    for note in sorted(part.glob(f"{_WRITTEN}*.json")):
        files |= read_json(note)
        note.unlink()
    return files


def _replicas() -> dist.ProcessGroup:
    """The ranks that hold the same shards of the model: they share the work of saving and loading."""
    group: dist.ProcessGroup = parallel_state.get_data_parallel_group(with_context_parallel=True)
    return group
