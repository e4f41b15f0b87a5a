"""Progress: a moving line on a terminal, a new line twice a minute where the output goes to a file."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

_SECONDS = 30  # between lines of a log file


@contextmanager
def counter(what: str, total: int | None = None, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Count up with the function it gives."""
    columns = (TextColumn("{task.completed:,.0f} {task.description}"), BarColumn(), TaskProgressColumn())
    with _bar(*columns, total=total, what=what, quiet=quiet) as count:
        yield count


@contextmanager
def bytes_counter(total: int) -> Iterator[Callable[[int], None]]:
    """Count up bytes, with their speed."""
    with _bar(BarColumn(), DownloadColumn(), TransferSpeedColumn(), total=total) as count:
        yield count


@contextmanager
def _bar(
    *columns: ProgressColumn, total: int | None, what: str = "", quiet: bool = False
) -> Iterator[Callable[[int], None]]:
    console = Console(file=sys.stderr)
    disable = quiet or not console.is_terminal
    lines = _Lines(what, total, quiet or console.is_terminal)
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=disable) as progress:
        task = progress.add_task(what, total=total)

        def advance(amount: int) -> None:
            progress.advance(task, amount)
            lines.advance(amount)

        yield advance


class _Lines:
    """Progress as lines of a log file."""

    def __init__(self, what: str, total: int | None, quiet: bool) -> None:
        self._what, self._total, self._quiet = what, total, quiet
        self._count, self._start = 0, time.monotonic()
        self._next = self._start + _SECONDS

    def advance(self, amount: int) -> None:
        self._count += amount
        now = time.monotonic()
        if not self._quiet and now >= self._next:
            self._next = now + _SECONDS
            of = f" of {self._total:,}" if self._total else ""
            minutes, seconds = divmod(round(now - self._start), 60)
            print(f"{self._count:,}{of} {self._what}, {minutes:02}:{seconds:02}", file=sys.stderr, flush=True)


@contextmanager
def status(what: str, quiet: bool = False) -> Iterator[tuple[Callable[[int], None], Callable[[str], None]]]:
    """Count up with the first function it gives, and say how things stand with the second."""
    columns = (TextColumn(f"{{task.completed:,.0f}} {what}"), TimeElapsedColumn(), TextColumn("{task.description}"))
    console = Console(file=sys.stderr)
    lines = _Lines(what, None, quiet or console.is_terminal)
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task("", total=None)

        def advance(amount: int) -> None:
            progress.advance(task, amount)
            lines.advance(amount)

        yield advance, lambda text: progress.update(task, description=text)
