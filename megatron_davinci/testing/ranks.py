"""Run a function on several real processes that form one torch.distributed world over gloo."""

import multiprocessing
import os
import random
import socket
import traceback
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from contextlib import suppress
from typing import Any

TIMEOUT_SECONDS, GRACE_SECONDS = 600, 10
_PORTS = range(20_000, 32_000)


def run_on_ranks(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """Call `function(*args)` on every rank of a new world, with torchrun's environment; returns each rank's result.

    The function must be importable, and opens its process group itself. Raises RuntimeError with the traceback of the
    first rank that failed. What multiprocessing.set_forkserver_preload names is imported once for all ranks.
    """
    with ProcessPoolExecutor(world_size, mp_context=multiprocessing.get_context("forkserver")) as pool:
        ranks = rank_environments(world_size)
        jobs = [pool.submit(_run_rank, {**os.environ, **rank}, function, args) for rank in ranks]
        finished, others = wait(jobs, TIMEOUT_SECONDS, FIRST_EXCEPTION)
        failed = next((job for job in finished if job.exception() is not None), None)
        if others:  # they wait for one that has failed, some without end
            wait(others, GRACE_SECONDS)
            for process in multiprocessing.active_children():
                process.kill()
    if failed is not None:
        raise RuntimeError(f"rank {jobs.index(failed)} of {world_size} failed:\n{failed.exception()}")
    if others:
        raise RuntimeError(f"no rank of {world_size} had failed, or all ended, in {TIMEOUT_SECONDS} seconds")
    return [job.result() for job in jobs]


def rank_environments(world_size: int) -> list[dict[str, str]]:
    """What torchrun adds to the environment of each rank of a new world on this machine."""
    meeting = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    return [{**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]


def _run_rank(environment: dict[str, str], function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    os.environ.clear()
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)  # as torchrun does; ranks share the cores
    try:
        return function(*args)
    except BaseException:
        raise RuntimeError(traceback.format_exc()) from None  # a plain one, which reaches the other process


def _free_port() -> int:
    """A free port below those that Linux gives to outgoing connections: one could take it before the ranks listen."""
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError(f"no port from {_PORTS.start} to {_PORTS.stop - 1} is free for the ranks to meet at")
