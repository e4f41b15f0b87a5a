"""Processes and their groups: from torchrun's environment, or this process alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from torch._C._distributed_c10d import HashStore

from data_prep import InputError
from megatron_davinci import device

TIMEOUT = timedelta(minutes=10)


@contextmanager
def world() -> Iterator[None]:
    """The process group of all ranks: torchrun's, or this process alone."""
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")  # orders communication before the GEMM that hides it
    device.use_this_machine()
    if "RANK" in os.environ:
        dist.init_process_group(device.backend(), timeout=TIMEOUT)
    else:
        dist.init_process_group(device.backend(), store=HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def model_parallel(tensor: int, pipeline: int, seed: int) -> Iterator[torch.device]:
    """Megatron's groups inside `world`; gives this rank's device. Raises InputError when the ranks do not divide."""
    if dist.get_world_size() % (tensor * pipeline):
        raise InputError(
            f"{dist.get_world_size()} process(es) cannot hold tensor {tensor} x pipeline {pipeline} ranks: start a "
            f"multiple of {tensor * pipeline}, as in "
            f"torchrun --nproc-per-node {tensor * pipeline} -m megatron_davinci.train RECIPE"
        )
    parallel_state.initialize_model_parallel(tensor, pipeline)
    try:
        model_parallel_cuda_manual_seed(seed, force_reset_rng=True)
        yield device.local_device(int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        parallel_state.destroy_model_parallel()


def is_main_rank() -> bool:
    """True on the one rank that prints and writes."""
    return not dist.is_initialized() or dist.get_rank() == 0
