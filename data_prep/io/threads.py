"""Work in threads that does not hold up the end of its process: what is done is on disk, and is gone on with."""

import queue
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")
_WAKE_SECONDS = 0.5
"""A wait without end is not woken by a signal that came just before it, or that the kernel gave to another thread."""


def run_in_threads(do: Callable[[Item], None], items: Iterable[Item], count: int) -> None:
    """Call `do` for each item, `count` at a time. After an exception no item is begun, and it is raised when the others
    have ended; Ctrl-C waits for nothing.
    """
    waiting: queue.SimpleQueue[Item] = queue.SimpleQueue()
    for item in items:
        waiting.put(item)
    failed: list[BaseException] = []
    stopped = threading.Event()

    def work() -> None:
        while not (failed or stopped.is_set()):
            try:
                do(waiting.get_nowait())
            except queue.Empty:
                return
            except BaseException as error:  # it is the caller's
                failed.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(count, waiting.qsize()))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(_WAKE_SECONDS)
    finally:
        stopped.set()
    if failed:
        raise failed[0]
