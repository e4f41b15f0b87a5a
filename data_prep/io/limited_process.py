"""A process with limits for work on what anybody wrote: templates, tokenizers, regular expressions.

It answers one call at a time. What uses up its processor time or memory ends that process, and nothing else: the
caller is told which item it was at, and the next call starts a new one. Time is that of the processor, so that a busy
machine judges as an idle one does.
"""

import multiprocessing
import os
import resource
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from data_prep.io.errors import InputError, WorkFailed, describe

MEMORY_BYTES = 4 << 30  # that the work may take beside what a new process holds
_NOTHING = -1
_ANSWER, _ERROR, _FAILED = "answer", "error", "failed"
_NO_MEMORY = 77  # exit status of a process that the limit has refused memory
_BY_OTHERS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # not what the work itself dies of
_MOST_LOST = 3

Mark = Callable[[int, float], None]  # "from here on it is this item, which may take so many seconds"


class ProcessEnded(Exception):
    """The work ended its process. `at` is the item last marked, None before the first; `reason` says what ended it."""

    def __init__(self, reason: str, at: int | None) -> None:
        super().__init__(reason, at)
        self.reason, self.at = reason, at


class LimitedProcess:
    """`start(*arguments)` runs in the process: it gives what `ready` is to be, and the function that answers calls.

    That function takes an item and a `Mark`. Functions, items and answers are pickled. An InputError or WorkFailed of
    either is raised here; whatever else they raise ends the process. Raises ProcessEnded where `start` does that, or
    takes more than `seconds` of processor time, or too much memory.
    """

    def __init__(self, start: Callable[..., Any], arguments: Sequence[Any], seconds: float) -> None:
        self._start, self._arguments, self._seconds = start, tuple(arguments), seconds
        self._context = multiprocessing.get_context("forkserver")
        self._at = self._context.RawValue("q", _NOTHING)
        self._process: Any = None
        self.ready = self._kept_alive(self._launch)

    def _launch(self) -> Any:
        self._connection, theirs = self._context.Pipe()
        self._at.value = _NOTHING
        self._process = self._context.Process(
            target=_serve, args=(theirs, self._at, self._start, self._arguments, self._seconds), daemon=True
        )
        self._process.start()
        theirs.close()
        return self._answer()

    def call(self, item: Any, seconds: float) -> Any:
        """The function's answer; until it marks something, it may take `seconds` of processor time.

        Raises ProcessEnded, and WorkFailed where others ended the process again and again.
        """

        def ask() -> Any:
            if self._process is None:
                self._launch()
            self._at.value = _NOTHING
            self._connection.send((item, seconds))
            return self._answer()

        return self._kept_alive(ask)

    def _kept_alive(self, work: Callable[[], Any]) -> Any:
        """Do it again where somebody kills the process."""
        for _ in range(_MOST_LOST):
            try:
                return work()
            except (_EndedByOthers, BrokenPipeError, ConnectionResetError):
                self.close()
        raise WorkFailed(
            f"a process at work was killed {_MOST_LOST} times, perhaps for want of memory: use fewer --workers, and "
            "start the same command again"
        )

    def _answer(self) -> Any:
        try:
            kind, value = self._connection.recv()
        except (EOFError, OSError):  # the latter: half an answer
            self._process.join()
            code = self._process.exitcode
            self.close()
            if -code in _BY_OTHERS:
                raise _EndedByOthers from None
            at = int(self._at.value)
            raise ProcessEnded(_reason(code), None if at == _NOTHING else at) from None
        if kind == _ANSWER:
            return value
        at = int(self._at.value)
        self.close()
        if kind == _ERROR:
            raise value
        raise ProcessEnded(f"cannot be worked on ({value})", None if at == _NOTHING else at)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._connection.close()
            self._process.kill()
            self._process.join()
            self._process = None


class _EndedByOthers(Exception):
    """Somebody killed the process: the work is done again."""


def _reason(code: int) -> str:
    if code == -signal.SIGPROF:
        return "takes more processor time than it may"
    if code == _NO_MEMORY:
        return f"needs more than {MEMORY_BYTES >> 30} GiB of memory"
    return f"ended the process that worked on it ({signal.Signals(-code).name if code < 0 else f'status {code}'})"


def _serve(
    connection: Connection, at: Any, start: Callable[..., Any], arguments: tuple[Any, ...], seconds: float
) -> None:
    """The process: answers until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    limit_memory(MEMORY_BYTES)

    def mark(number: int, seconds: float) -> None:
        at.value = number
        signal.setitimer(signal.ITIMER_PROF, seconds)

    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        ready, handle = start(*arguments)
        answer = ready
        while True:
            signal.setitimer(signal.ITIMER_PROF, 0)
            connection.send((_ANSWER, answer))
            item, seconds = connection.recv()
            signal.setitimer(signal.ITIMER_PROF, seconds)
            answer = handle(item, mark)
    except MemoryError:
        os._exit(_NO_MEMORY)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent has ended
    except (InputError, WorkFailed) as error:
        signal.setitimer(signal.ITIMER_PROF, 0)
        kind = InputError if isinstance(error, InputError) else WorkFailed
        connection.send((_ERROR, kind(str(error))))  # a class with arguments of its own may not arrive
    except BaseException as error:  # foreign code's: panics of Rust are no Exception
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send((_FAILED, describe(error)))


def limit_memory(room: int) -> None:
    """Let this process take no more than `room` bytes beside what it holds now."""
    most = resource.getrlimit(resource.RLIMIT_DATA)[1]
    with open("/proc/self/statm") as file:  # noqa: PTH123 - no file of anybody's
        held = int(file.read().split()[5]) * resource.getpagesize()  # data and stacks
    wanted = held + room
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if most < 0 else min(wanted, most), most))
