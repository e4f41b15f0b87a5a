"""Whether two final answers are the same mathematics, as math-verify sees it, in processes that can be ended.

What a model wrote is hostile: it can take forever to simplify, or all memory, and sympy pastes names of symbols into
code that it runs. So workers take plain names alone, may touch nothing outside themselves, and have limits.
"""

import multiprocessing
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Iterable
from concurrent.futures import TimeoutError as TookTooLong
from typing import Any

from pebble import ProcessExpired, ProcessPool

from data_prep import InputError

Pair = tuple[str, str]  # truth, answer

MAX_CHARACTERS = 300  # characters; more is no final answer
_FIRST_CPU_SECONDS = 0.25
_CPU_SECONDS = 2.0  # for one pair; of the processor, so that a busy machine judges as an idle one does
_STUCK_SECONDS = 60.0
_ALL_SECONDS = 300.0  # for all pairs of a step: other ranks wait
_MEMORY = 4 << 30
_MOST_PROCESSES = 8
_PROBE = ("2", "2.0")
_WORDS = re.compile(r"[^\W\d_]{2,}(?:[ '-][^\W\d_]+)*")
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mbox)\{([^{}]*)\}")
_ASSIGNMENT = re.compile(r"\s*\\?[A-Za-z]\w*\s*=[^=]*")
_IN_BASE = re.compile(r"\{?([0-9]{1,100})_\{?([0-9]{1,2})\}?\}?")
_PLAIN_NAME = re.compile(r"[A-Za-z]\w*(?:_\{?\w+\}?)?")


def are_equal(pairs: Iterable[Pair]) -> dict[Pair, bool | None]:
    """Verdicts on (truth, answer), each pair once. What is too long, or takes too long to compare, is not equal; None:
    it was not judged, for a reason that is not its own.

    Words are compared as text, whatever their case. An equation answers a truth that is none only as "x = ...". Raises
    InputError where the comparison does not work on this machine.
    """
    verdicts: dict[Pair, bool | None] = {pair: _at_once(*pair) for pair in pairs}
    asked = [pair for pair, verdict in verdicts.items() if verdict is None]
    compared = _compare([_PROBE, *asked]) if asked else {_PROBE: True}
    if compared[_PROBE] is False:
        raise InputError(
            "math-verify does not find 2 equal to 2.0 on this machine: check that it is installed, and that a process "
            f"may take {_MEMORY >> 30} GiB of address space (ulimit -v)"
        )
    return {pair: compared[pair] if verdict is None else verdict for pair, verdict in verdicts.items()}


def _at_once(truth: str, answer: str) -> bool | None:
    """The verdict, where no mathematics is needed."""
    truth, answer = (_TEXT.sub(r"\1", text).strip() for text in (truth, answer))
    if not answer or len(answer) > MAX_CHARACTERS:
        return False
    if truth == answer:
        return True
    numbers = _IN_BASE.fullmatch(truth), _IN_BASE.fullmatch(answer)
    if numbers[0] and numbers[1]:  # math-verify sees no base
        return numbers[0].groups() == numbers[1].groups()
    if _WORDS.fullmatch(truth):
        return truth.casefold() == answer.casefold()
    if "=" in answer and "=" not in truth and not _ASSIGNMENT.fullmatch(answer):
        return False  # math-verify would take the last side of any equation
    return None


def _compare(asked: list[Pair]) -> dict[Pair, bool | None]:
    """Every pair gets a short time first: those that want more must not take it from the others."""
    deadline = time.monotonic() + _ALL_SECONDS
    found = _judge(asked, _FIRST_CPU_SECONDS, deadline)
    slow = [pair for pair, verdict in found.items() if verdict is None]
    if slow and time.monotonic() < deadline:
        found |= _judge(slow, _CPU_SECONDS, deadline)
    if not_judged := sum(verdict is None for verdict in found.values()):
        print(
            f"warning: {not_judged} of {len(asked)} answers were not judged (within {_ALL_SECONDS:.0f} s, or their "
            "processes were killed): they are left out; give the first rank more cores and memory",
            file=sys.stderr,
            flush=True,
        )
    return found


def _judge(asked: list[Pair], seconds: float, deadline: float) -> dict[Pair, bool | None]:
    """Verdicts, None where there is none: in the first round for want of `seconds`, in the last for want of anything
    but processor time and memory of its own, of which each pair had its share.
    """
    spawn = multiprocessing.get_context("spawn")  # a fork of a process with torch's threads may hang
    workers = min(_MOST_PROCESSES, len(asked), len(os.sched_getaffinity(0)))
    found: dict[Pair, bool | None] = dict.fromkeys(asked)
    with ProcessPool(workers, context=spawn, initializer=_begin) as pool:
        jobs = [(pair, pool.schedule(_is_equal, args=(pair, seconds), timeout=_STUCK_SECONDS)) for pair in asked]
        for pair, job in jobs:
            try:
                found[pair] = job.result(max(0.0, deadline - time.monotonic()))
            except MemoryError:
                found[pair] = False
            except ProcessExpired as end:  # its own time has ended it, or somebody else has
                found[pair] = False if end.exitcode == -signal.SIGPROF and seconds == _CPU_SECONDS else None
            except (TookTooLong, RuntimeError):  # the latter: all workers were killed
                continue
        if time.monotonic() >= deadline:
            pool.stop()
    return found


def _begin() -> None:
    """A worker: what it needs is imported, then it is shut in."""
    import ctypes
    import logging

    import sympy
    from math_verify import LatexExtractionConfig, parse, verify

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no worker outlives its trainer
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY if most < 0 else min(_MEMORY, most), most))
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # of times that are kept here
    verify(*(parse(f"\\boxed{{{text}}}", [LatexExtractionConfig()], parsing_timeout=None) for text in _PROBE))
    for module in [module for name, module in sys.modules.items() if name.split(".")[0] == sympy.__name__]:
        if hasattr(module, "lambdify"):
            setattr(module, "lambdify", _refuse)  # noqa: B010  # no attribute that a type checker knows
    sys.addaudithook(_audit)


def _refuse(*_arguments: Any, **_options: Any) -> None:
    raise ValueError("expressions are not made into code here")


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    """Raise where Python is about to do something outside this process; reading files stays, for late imports."""
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
    opened_to_write = event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & writes)
    if opened_to_write or (event.split(".")[0] in _OUTSIDE and event not in _HARMLESS):
        raise PermissionError(f"{event} is not allowed here")


_OUTSIDE = {"os", "socket", "subprocess", "shutil", "ctypes", "pty", "tempfile", "urllib", "http", "ftplib", "smtplib",
            "glob", "webbrowser", "mmap", "fcntl", "signal"}  # fmt: skip
_HARMLESS = {"os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.putenv", "os.unsetenv"}


class _OutOfTime(BaseException):
    """No Exception: the library catches those."""


def _stop(*_: Any) -> None:
    raise _OutOfTime


def _is_equal(pair: Pair, seconds: float) -> bool | None:
    """None where it takes longer, if it can be stopped; else the process ends."""
    signal.signal(signal.SIGVTALRM, _stop)
    signal.setitimer(signal.ITIMER_PROF, max(_CPU_SECONDS, 2 * seconds))  # whose signal ends the process
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        return _same_mathematics(*pair)
    except _OutOfTime:
        return False if seconds == _CPU_SECONDS else None
    except (RecursionError, ArithmeticError, ValueError, TypeError, PermissionError):
        return False
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        signal.setitimer(signal.ITIMER_PROF, 0.0)


def _same_mathematics(truth: str, answer: str) -> bool:
    from math_verify import LatexExtractionConfig, parse, verify

    # LaTeX alone: the library has sympy's own parser for other texts, which would run what it reads
    latex = [LatexExtractionConfig()]
    parsed = [parse(f"\\boxed{{{text}}}", latex, parsing_timeout=None) for text in (truth, answer)]
    if not all(_PLAIN_NAME.fullmatch(name) for side in parsed for name in _names(side)):
        return False
    return bool(verify(*parsed, float_rounding=9, timeout_seconds=None))


def _names(parsed: Iterable[Any]) -> list[str]:
    """Of all symbols and functions that a text has made up."""
    import sympy
    from sympy.core.function import UndefinedFunction

    found = []
    for expression in parsed:
        if not isinstance(expression, sympy.Basic | sympy.MatrixBase):
            continue  # the text itself
        for part in sympy.preorder_traversal(expression):
            if isinstance(part, sympy.Symbol):
                found.append(part.name)
            elif isinstance(type(part), UndefinedFunction):
                found.append(type(part).__name__)
    return found
