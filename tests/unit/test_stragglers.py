"""Property: the rank that works longest by itself is named, whatever it waits for besides."""

from typing import Any

import torch
import torch.distributed as dist

from megatron_davinci.testing import run_on_ranks
from megatron_davinci.train.stragglers import slowest_rank


def test_the_rank_that_works_longest_is_named() -> None:
    every = run_on_ranks(told, 3)
    assert all(facts == every[0] for facts in every)
    assert every[0]["slowest_rank"] == 1 and abs(every[0]["slowest_over_median"] - 3.0) < 1e-5


def told() -> Any:
    """Rank 1 works for 3 seconds and waits for none; the others work for one, and wait for it."""
    dist.init_process_group("gloo")
    work, waiting = (2.5, 0.0) if dist.get_rank() == 1 else (2.5, 2.0)
    phases = {"data": 0.5, "forward_backward": work, "reduce_gradients": waiting, "optimizer": 9.0}
    try:
        return slowest_rank(phases, torch.device("cpu"))
    finally:
        dist.destroy_process_group()


def test_alone_there_is_nothing_to_tell() -> None:
    assert run_on_ranks(told, 1) == [{}]
