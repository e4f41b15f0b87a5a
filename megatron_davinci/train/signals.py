"""SIGTERM and SIGUSR1, which schedulers send before a limit, and Ctrl-C: a run saves after its step, and ends."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from megatron_davinci.config.processes import process_rank

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_SAME_PRESS = 1.0
"""Seconds in which a second SIGINT is the first one: of the terminal, and of a program that passes it on."""


class StopRequest:
    """Whether any rank was asked to stop."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._signal = 0
        self._pressed: float | None = None
        self._launched = "TORCHELASTIC_RUN_ID" in os.environ  # torchrun itself then says when it has had enough

    @contextmanager
    def install_handlers(self) -> Iterator[None]:
        """Signals are noted in the block, and do nothing else; also one that has waited for it.

        A rank that was asked to stop is ending when the block does: what torchrun passes on so late does nothing.
        """
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_IGN if self._launched and self._signal else handler)

    def on_any_rank(self) -> int:
        """The signal that some rank got, 0 for none; the same on every rank, all of which call this together."""
        found = torch.tensor([self._signal], device=self._device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def _note(self, number: int, _frame: Any) -> None:
        if self._pressed is not None:
            if number == signal.SIGINT and not self._launched and time.monotonic() > self._pressed + _SAME_PRESS:
                raise KeyboardInterrupt
            return  # torchrun follows a Ctrl-C with a SIGTERM of its own
        self._signal = number
        if number != signal.SIGINT:
            print(f"{signal.Signals(number).name}: saving after this step", file=sys.stderr, flush=True)
            return
        self._pressed = time.monotonic()
        if process_rank() == 0:
            again = "" if self._launched else "; once more ends at once"
            print(f"Ctrl-C: saving after this step{again}", file=sys.stderr, flush=True)
