"""Processes and their groups: from torchrun's environment, or this process alone."""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from torch._C._distributed_c10d import HashStore

from data_prep import InputError, WorkFailed
from megatron_davinci.config import StageRecipe
from megatron_davinci.core import device, patches

TIMEOUT = timedelta(minutes=30)
_TELL_SECONDS = 5

_T = TypeVar("_T")


@contextmanager
def world(timeout: timedelta = TIMEOUT) -> Iterator[None]:
    """The process group of all ranks: torchrun's, or this process alone.

    `timeout`: how long a rank waits for the others in a collective before it gives up.
    """
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")  # orders communication before the GEMM that hides it
    patches.run_on_cpu_without_gpu()
    device.local_device(_local_rank())  # before anything else asks CUDA for memory, which would be that of GPU 0
    if "RANK" in os.environ:
        dist.init_process_group(device.backend(), timeout=timeout)
    else:
        dist.init_process_group(device.backend(), store=HashStore(), rank=0, world_size=1)
    try:
        _check_one_rank_per_gpu()
        yield
    finally:
        dist.destroy_process_group()


def _check_one_rank_per_gpu() -> None:
    """Raise InputError, on every rank, where two have the same GPU. NCCL is not asked: it would hang or abort."""
    if not device.has_gpu():
        return
    store, rank = dist.distributed_c10d._get_default_store(), dist.get_rank()
    store.set(f"gpu-of-{rank}", device.identity())
    if rank == 0:
        of_rank = [store.get(f"gpu-of-{each}").decode() for each in range(dist.get_world_size())]
        twice = next((gpu for gpu, count in Counter(of_rank).items() if count > 1), "")
        ranks = [str(each) for each, gpu in enumerate(of_rank) if gpu == twice]
        store.set("ranks-of-one-gpu", f"{' and '.join(ranks)} have {twice}" if twice else "")
    if said := store.get("ranks-of-one-gpu").decode():
        raise InputError(
            f"ranks {said}: start one rank for each GPU of a node (--gpus-per-node, --nproc-per-node), or let each see "
            "its own (CUDA_VISIBLE_DEVICES)"
        )


@contextmanager
def model_parallel(stage: StageRecipe, seed: int, timeout: timedelta = TIMEOUT) -> Iterator[torch.device]:
    """Megatron's groups for a stage's layout, inside `world`; gives this rank's device."""
    if stage.megatron.deterministic_mode:
        os.environ.setdefault("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "0")  # Megatron insists, before it builds a layer
    if not stage.megatron.bf16:
        # Transformer Engine multiplies fp32 in TF32 unless cuBLAS is told otherwise, which it reads at its first use
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    layout = stage.layout
    minutes = math.ceil(timeout / timedelta(minutes=1))
    parallel_state.initialize_model_parallel(
        layout.tensor,
        layout.pipeline,
        layout.virtual_pipeline,
        context_parallel_size=layout.context,
        distributed_timeout_minutes=minutes,
    )
    try:
        model_parallel_cuda_manual_seed(seed, force_reset_rng=True)
        yield device.local_device(_local_rank())
    finally:
        _destroy_groups()


def context_rank() -> tuple[int, int]:
    """This rank's number among those that share its sequences, and how many they are."""
    return parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size()


def data_rank() -> tuple[int, int]:
    """This rank's number among those that share out a batch's micro-batches, and how many they are."""
    return parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()


def data_group() -> dist.ProcessGroup:
    """The ranks that share out a batch's micro-batches."""
    group: dist.ProcessGroup = parallel_state.get_data_parallel_group()
    return group


def broadcast_object(value: _T) -> _T:
    """The main rank's value, on every rank."""
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def all_gather_object(value: _T, group: dist.ProcessGroup | None = None) -> list[_T]:
    """Every rank's value, in the order of ranks, on every rank of `group` (all ranks, where none is given)."""
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def run_on_one(
    work: Callable[[], _T] | None,
    source: int,
    group: dist.ProcessGroup | None,
    on_wait: Callable[[], None] = lambda: None,
) -> _T:
    """What `work` returns or raises on rank `source`, where alone it is given, for all ranks of `group`.

    It may take longer than a collective may wait: every few seconds all hear that it goes on, and call `on_wait`.
    """
    with ThreadPoolExecutor(1) as pool:
        running = None if work is None else pool.submit(work)
        while True:
            outcome: list[Any] = [None if running is None else _outcome_of(running)]
            dist.broadcast_object_list(outcome, src=source, group=group)
            if outcome[0] is not None:
                result, error = outcome[0]
                if error is not None:
                    raise error
                return result
            on_wait()


def _outcome_of(running: Future[_T]) -> tuple[_T | None, BaseException | None] | None:
    """(result, error), None while it still runs. Another error than those that all ranks may raise is this rank's."""
    if not wait([running], _TELL_SECONDS).done:
        return None
    error = running.exception()
    if error is None or isinstance(error, InputError | WorkFailed | FloatingPointError):
        return (None, error) if error is not None else (running.result(), None)
    raise error


@contextmanager
def sync_errors() -> Iterator[None]:
    """Raise on every rank what is wrong in the block on any: the others would wait for it. All ranks enter it."""
    mistake: Exception | None = None
    try:
        yield
    except (InputError, FloatingPointError, WorkFailed) as error:
        mistake = error
    for each in all_gather_object(mistake):
        if each is not None:
            raise each


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def _destroy_groups() -> None:
    """Megatron only forgets its groups: their threads and connections would stay until the world ends."""
    for group in getattr(parallel_state, "_global_process_group_list", None) or []:
        if group is not None:
            dist.destroy_process_group(group)
    parallel_state.destroy_model_parallel()


def is_main_rank() -> bool:
    """True on the one rank that prints and writes."""
    return not dist.is_initialized() or dist.get_rank() == 0
