"""The process through which Megatron's checkpoint writer collects results: one that dies with its rank.

Megatron's own outlives a rank that is killed, and so would pile up on a node whose launcher starts ranks again.
"""

import os
import pickle
from multiprocessing import get_context
from multiprocessing.managers import SyncManager
from typing import Any

from megatron.core.dist_checkpointing.strategies import filesystem_async

from megatron_davinci.checkpoint.mortal import die_with

_managers: list[SyncManager] = []  # which live as long as this process


class _SealedQueue:
    """A manager's queue whose process keeps bytes alone: it would import torch to look at a result."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue

    def put(self, item: Any) -> None:
        self._queue.put(pickle.dumps(item))

    def get_nowait(self) -> Any:
        """Raises queue.Empty."""
        return pickle.loads(self._queue.get_nowait())  # noqa: S301 - a process of this rank has put it there


def use_mortal_manager() -> None:
    """Before the first checkpoint is saved; further calls do nothing."""
    if filesystem_async._results_queue is None:
        _managers.append(SyncManager(ctx=get_context("spawn")))
        _managers[0].start(initializer=die_with, initargs=(os.getpid(),))
        filesystem_async._results_queue = _SealedQueue(_managers[0].Queue())
