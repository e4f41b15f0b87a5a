"""Do a recipe's stages fit in the memory of a GPU? Torch-free."""

import shutil
import subprocess
import sys
from math import ceil
from pathlib import Path

from data_prep import InputError
from data_prep.io.errors import printable
from megatron_davinci.config import Recipe, StageRecipe
from megatron_davinci.models.config import ModelConfig, load_model_config
from megatron_davinci.models.memory import GIB, state_bytes
from megatron_davinci.plan.describe import PLAN_FILE, keep_plan
from megatron_davinci.plan.devices import check_fp8_of, find_device
from megatron_davinci.plan.peak import doubts_about_memory

_SMI_SECONDS = 20
_COMMON_GIBIBYTES = 80.0


def plan_memory(recipe: Recipe, ranks: int, gpu: str | None, gibibytes: float | None, here: bool) -> None:
    """Refuse what no GPU of the job can hold, and say on stderr what may not fit. Raises InputError.

    The size is `gibibytes`, or that of `gpu`, or of this machine's GPU where the job runs `here`. Where nobody knows
    it, weights, gradients and optimizer must fit in 80 GiB, and what comes on top is said.
    """
    if gpu is not None:
        device = find_device(gpu)
        for index in range(len(recipe.data.stages)):
            check_fp8_of(device, recipe.stage(index))
        gibibytes = device.memory_gib if gibibytes is None else gibibytes
    elif gibibytes is None and here:
        gibibytes = visible_gpu_gibibytes()
    size = _COMMON_GIBIBYTES if gibibytes is None else gibibytes
    check_memory(recipe, ranks, size)
    for doubt in doubts_about_memory(recipe, ranks, size, refuse=gibibytes is not None):
        unknown = "" if gibibytes is not None else "; 80 GiB is a guess: say --gpu or --gpu-memory"
        print(f"warning: {doubt}{unknown}", file=sys.stderr, flush=True)


def keep_or_drop_plan(recipe: Recipe, ranks: int, gpu: str | None) -> None:
    """Put a plan for `gpu` into the run's directory, or take away one that is there of another launch.

    What no plan can be made of is launched all the same.
    """
    try:
        (Path(recipe.checkpoint.dir) / PLAN_FILE).unlink(missing_ok=True)
        if gpu is not None:
            keep_plan(recipe, ranks, find_device(gpu))
    except (InputError, OSError) as reason:
        print(printable(f"no plan for the report: {reason}"), file=sys.stderr, flush=True)


def visible_gpu_gibibytes() -> float | None:
    """Memory of this machine's smallest GPU, None where the driver shows none."""
    if shutil.which("nvidia-smi") is None:
        return None
    asked = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=_SMI_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.split()
    if done.returncode or not lines or not all(line.isdigit() for line in lines):
        return None
    return min(map(int, lines)) / 1024


def check_memory(recipe: Recipe, ranks: int, gibibytes: float) -> None:
    """Raise InputError where weights, gradients, optimizer and what saving them takes are more than a GPU has.

    It says what would do. Activations come on top: what passes may still not fit.
    """
    model = load_model_config(recipe.model)
    for stage in (recipe.stage(index) for index in range(len(recipe.data.stages))):
        _check_state(stage, model, ranks, gibibytes)


def _check_state(stage: StageRecipe, model: ModelConfig, ranks: int, gibibytes: float) -> None:
    state = state_bytes(model, stage.megatron)
    replicas = ranks // stage.layout.ranks_per_replica
    needed = state.of_each(replicas * stage.layout.context)
    saving = state.while_saving(replicas * stage.layout.context)
    room = int(gibibytes * GIB)
    if saving <= room:
        return
    if needed <= room:
        raise InputError(
            f"stage {stage.name} takes {saving / GIB:.1f} GiB a rank while a checkpoint is made, since its gradients "
            f"are one bucket, and a GPU has {gibibytes:g}: set megatron.overlap_grad_reduce"
        )
    if state.kept < room:
        enough = ceil(ceil(state.shared / (room - state.kept)) / stage.layout.context)
        remedy = f"give {enough * stage.layout.ranks_per_replica} ranks, which share out the optimizer"
    else:
        remedy = "raise tensor_model_parallel_size or pipeline_model_parallel_size"
        if not state.shared:
            remedy += ", or set megatron.use_distributed_optimizer, which shares out the optimizer"
    raise InputError(
        f"stage {stage.name} takes {needed / GIB:.1f} GiB a rank for weights, gradients and optimizer alone, and a GPU "
        f"has {gibibytes:g}: {remedy}, or give the memory of larger GPUs (--gpu, --gpu-memory)"
    )
