"""Seconds by phase of a step; `report.metric_fields.PHASES` says what each phase is."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from megatron_davinci.core import device


class Timers:
    """`with timers("optimizer"): ...`; what the GPU still works on counts to the phase that started it."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self.listener: Callable[[str | None], None] | None = None
        """Told of each phase that begins and, with None, of what moves in a long one."""

    def moved(self) -> None:
        """The present phase, which is long, has come further."""
        if self.listener is not None:
            self.listener(None)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        if self.listener is not None:
            self.listener(phase)
        device.synchronize()
        started = time.monotonic()
        try:
            yield
        finally:
            device.synchronize()
            self._seconds[phase] += time.monotonic() - started

    @contextmanager
    def alone(self, phase: str) -> Iterator[None]:
        """A phase whose parts are not timed: what they do is no part of the step."""
        known, self._seconds = self._seconds, defaultdict(float)
        started = time.monotonic()
        try:
            yield
        finally:
            device.synchronize()
            self._seconds = known
            known[phase] += time.monotonic() - started

    def of(self, phase: str) -> float:
        """Seconds of one phase since they were last taken."""
        return self._seconds[phase]

    def take(self) -> dict[str, float]:
        """Seconds by phase since the last call."""
        taken = dict(self._seconds)
        self._seconds.clear()
        return taken
