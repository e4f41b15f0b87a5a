"""SIGTERM and SIGUSR1, which schedulers send before a limit: the run saves after the step it is in, and ends."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Whether any rank was asked to stop."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._signal = 0

    @contextmanager
    def install_handlers(self) -> Iterator[None]:
        """Signals are noted in the block, and do nothing else; also one that has waited for it."""
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def on_any_rank(self) -> int:
        """The signal that some rank got, 0 for none; the same on every rank, all of which call this together."""
        found = torch.tensor([self._signal], device=self._device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def _note(self, number: int, _frame: Any) -> None:
        self._signal = number
        print(f"{signal.Signals(number).name}: saving after this step", file=sys.stderr, flush=True)
