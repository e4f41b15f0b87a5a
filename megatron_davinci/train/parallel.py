"""Processes and their groups: from torchrun's environment, or this process alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from data_prep import InputError
from megatron_davinci import device

TIMEOUT = timedelta(minutes=10)


@contextmanager
def model_parallel(tensor: int, pipeline: int, seed: int) -> Iterator[torch.device]:
    """Process groups for one run; the device of this rank. Raises InputError when the ranks do not divide."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size % (tensor * pipeline):
        raise InputError(
            f"{world_size} process(es) cannot hold tensor {tensor} x pipeline {pipeline} ranks: start a multiple of "
            f"{tensor * pipeline}, as in torchrun --nproc-per-node {tensor * pipeline} -m megatron_davinci.train RECIPE"
        )
    device.use_this_machine()
    local = device.local_device(int(os.environ.get("LOCAL_RANK", "0")))
    if "RANK" in os.environ:
        dist.init_process_group(device.backend(), timeout=TIMEOUT)
    else:
        dist.init_process_group(device.backend(), store=dist.HashStore(), rank=0, world_size=1)
    try:
        parallel_state.initialize_model_parallel(tensor, pipeline)
        model_parallel_cuda_manual_seed(seed)
        yield local
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def is_main_rank() -> bool:
    """True on the one rank that prints and writes."""
    return not dist.is_initialized() or dist.get_rank() == 0
