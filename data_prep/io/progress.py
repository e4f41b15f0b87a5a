"""A progress line on a terminal; nothing where the output goes to a file."""

import sys
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
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=disable) as progress:
        task = progress.add_task(what, total=total)
        yield lambda amount: progress.advance(task, amount)


@contextmanager
def status(what: str, quiet: bool = False) -> Iterator[tuple[Callable[[int], None], Callable[[str], None]]]:
    """Count up with the first function it gives, and say how things stand with the second."""
    columns = (TextColumn(f"{{task.completed:,.0f}} {what}"), TimeElapsedColumn(), TextColumn("{task.description}"))
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        yield lambda amount: progress.advance(task, amount), lambda text: progress.update(task, description=text)
