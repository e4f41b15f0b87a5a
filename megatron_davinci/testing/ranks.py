"""Run a function on several real processes that form one torch.distributed world over gloo."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

TIMEOUT_SECONDS = 600


def run_on_ranks(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """Call `function(*args)` on every rank of a new world, with torchrun's environment; returns each rank's result.

    The function must be importable, and opens its process group itself. Raises RuntimeError with the traceback of the
    first rank that failed.
    """
    port = _free_port()
    with ProcessPoolExecutor(world_size, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(_run_rank, rank, world_size, port, function, args) for rank in range(world_size)]
        outcomes = [job.result(timeout=TIMEOUT_SECONDS) for job in jobs]
    for rank, (failure, _) in enumerate(outcomes):
        if failure is not None:
            raise RuntimeError(f"rank {rank} of {world_size} failed:\n{failure}")
    return [result for _, result in outcomes]


def _run_rank(
    rank: int, world_size: int, port: int, function: Callable[..., Any], args: tuple[Any, ...]
) -> tuple[str | None, Any]:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    import torch

    torch.set_num_threads(1)  # as torchrun does; ranks share the cores
    try:
        return None, function(*args)
    except BaseException:
        return traceback.format_exc(), None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
