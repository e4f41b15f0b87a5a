"""Which rank works longest by itself: where none is slow, no collective waits for one."""

from collections.abc import Mapping
from statistics import median

import torch
import torch.distributed as dist

# What a rank does without waiting for its data-parallel fellows; the reduction of gradients is where it waits.
_OWN, _WAITING = ("data", "forward_backward"), "reduce_gradients"


def slowest_rank(phases: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """The rank that took longest over its own part of a step, and how many times the median of all that was.

    Tensor- and pipeline-parallel ranks wait for each other inside their part: of such a group all look slow. Every rank
    calls this; nothing for a run of one.
    """
    if dist.get_world_size() == 1:
        return {}
    own = sum(phases.get(phase, 0.0) for phase in _OWN) - phases.get(_WAITING, 0.0)
    every = torch.empty(dist.get_world_size(), dtype=torch.float32, device=device)
    dist.all_gather_into_tensor(every, torch.tensor([own], dtype=torch.float32, device=device))
    seconds = every.tolist()
    return {
        "slowest_rank": seconds.index(max(seconds)),
        "slowest_over_median": max(seconds) / max(median(seconds), 1e-9),
    }
