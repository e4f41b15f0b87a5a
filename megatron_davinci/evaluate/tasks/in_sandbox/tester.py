"""Whether a program does what a benchmark's tests want. It runs in the sandbox: standard library alone.

Two processes: this one has the tests and says the verdict, `candidate.py` has the program. Between them passes plain
data, so what a program defines (an object that equals everything, a patched module, an exit) is not here. Nor can it
look in: the processes part before this one reads the case, and this one is not dumpable, which closes its memory and
its descriptors to others of the same user.

On stdin: a case as JSON, "check" or "compare" as the argument says. On stdout: a line with the verdict and its code by
the case's nonce (HMAC): right, wrong, timeout, error, or reference where the benchmark's own solution fails.
"""

import hmac
import json
import math
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import candidate
from plain_data import NotPlain, close_to_others, decode, encode

_LONGEST_ANSWER = 64 << 20  # bytes, of one call
_BLOCK = 1 << 16
_RTOL = 1e-7


class Raised(Exception):
    """The program raised, or gave what is no plain data."""


class Ended(Exception):
    """The program's process is gone, or says what it never would by itself."""


class TimedOut(Exception):
    """The program's time is over."""


class ReferenceFailed(Exception):
    """The benchmark's own solution raises. The program may have brought it about: it is asked again, alone."""


class Program:
    """A process of its own for a program, whose function can be called once it is loaded."""

    def __init__(self) -> None:
        asked, self._asking = os.pipe()
        self._answers, answers = os.pipe()
        self._rest, self._deadline = b"", 0.0
        self._pid = os.fork()
        if self._pid == 0:
            try:
                candidate.serve(asked, answers)
            finally:
                os._exit(1)
        os.close(asked)
        os.close(answers)

    def load(self, source: str, case: "dict[str, Any]", deadline: float, closed: bool = False) -> None:
        """`closed`: other processes cannot look into it. Raises Raised and TimedOut, as every call may."""
        self._deadline = deadline
        limits = {name: case[name] for name in ("entry_point", "cpu_seconds", "memory_bytes")}
        self._ask({"program": source, "closed": closed, **limits})

    def __call__(self, *arguments: Any) -> Any:
        return self._ask([encode(each) for each in arguments])

    def _ask(self, question: Any) -> Any:
        try:
            self._write(json.dumps(question).encode() + b"\n")
        except BrokenPipeError:
            raise self._ended() from None
        try:
            answer = json.loads(self._line())
            raised = answer.get("raised")
            value = None if raised is not None else decode(answer["value"])
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise Ended(f"what it answers is no plain data ({type(error).__name__})") from None
        if raised is not None:
            raise Raised(str(raised))
        return value

    def _write(self, line: bytes) -> None:
        rest = memoryview(line)
        while rest:
            self._wait_for(writable=True)
            rest = rest[os.write(self._asking, rest[: select.PIPE_BUF]) :]

    def _wait_for(self, writable: bool = False) -> None:
        ends = ([], [self._asking]) if writable else ([self._answers], [])
        left = self._deadline - time.monotonic()
        if left <= 0 or not any(select.select(*ends, [], left)):
            raise TimedOut("the time of all calls is over")

    def _line(self) -> bytes:
        """The next line that it writes."""
        pieces = [self._rest]
        size = len(self._rest)
        while b"\n" not in pieces[-1]:
            self._wait_for()
            block = os.read(self._answers, _BLOCK)
            if not block:
                raise self._ended()
            pieces.append(block)
            size += len(block)
            if size > _LONGEST_ANSWER:
                raise Ended("its answer is too long")
        line, _, self._rest = b"".join(pieces).partition(b"\n")
        return line

    def _ended(self) -> Exception:
        status = os.waitpid(self._pid, 0)[1]
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
            return TimedOut("it took more processor time than it may, or was killed")
        return Ended(f"it ended by itself (status {os.waitstatus_to_exitcode(status)})")


def check(program: Program, case: "dict[str, Any]", deadline: float) -> None:
    """The benchmark's own test code, with the program's function in it. Raises what an assertion raises."""
    program.load(case["program"], case, deadline)
    names: dict[str, Any] = {"__name__": "tests"}
    exec(compile(case["prompt"], "prompt.py", "exec"), names)  # tests use functions that the prompt defines
    names[case["entry_point"]] = program
    exec(compile(case["test"], "test.py", "exec"), names)
    names["check"](program)


def compare(program: Program, reference: Program, case: "dict[str, Any]", deadline: float) -> None:
    """The program beside the reference, on all inputs. Raises AssertionError where they differ."""
    try:
        reference.load(case["reference"], case, deadline, closed=True)  # before there is a program to look at it
    except Raised as error:
        raise ReferenceFailed(str(error)) from None
    program.load(case["program"], case, deadline)
    for number, arguments in enumerate(case["inputs"]):
        try:
            wanted = reference(*arguments)
        except Raised as error:
            raise ReferenceFailed(f"input {number}: {error}") from None
        found = program(*arguments)
        if not is_same(found, wanted, case["atol"], case.get("polynomial") and arguments[0]):
            raise AssertionError(f"input {number}: {_short(found)}, where {_short(wanted)} is right")


def is_same(found: Any, wanted: Any, atol: float, polynomial: Any = None) -> bool:
    """Equal; floats within a tolerance (1e-6 where the benchmark names none), as EvalPlus has it. `polynomial`: a root
    of these coefficients is asked for, and there may be several."""
    if polynomial:
        return abs(sum(each * math.pow(found, power) for power, each in enumerate(polynomial))) <= atol
    if found == wanted:
        return True
    tolerance = atol or (1e-6 if _is_floats(wanted) else 0.0)
    return bool(tolerance) and type(found) is type(wanted) and _is_close(found, wanted, tolerance)


def _is_floats(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(each, float) for each in value)
    return isinstance(value, float)


def _is_close(found: Any, wanted: Any, atol: float) -> bool:
    if isinstance(wanted, list | tuple):
        same = isinstance(found, list | tuple) and len(found) == len(wanted)
        return same and all(_is_close(*pair, atol) for pair in zip(found, wanted, strict=True))
    numbers = isinstance(found, int | float) and isinstance(wanted, int | float)
    return numbers and abs(found - wanted) <= atol + _RTOL * abs(wanted)


def _short(value: Any) -> str:
    return repr(value)[:100]


def verdict(work: "Callable[[dict[str, Any], float], None]", case: "dict[str, Any]") -> "tuple[str, str]":
    """right, wrong, timeout, error or reference; and why."""
    try:
        work(case, time.monotonic() + case["wall_seconds"])
    except TimedOut as error:
        return "timeout", str(error)
    except AssertionError as error:
        return "wrong", str(error)[:500]
    except ReferenceFailed as error:
        return "reference", str(error)[:500]
    except (Raised, Ended, NotPlain) as error:
        return "error", str(error)[:500]
    except Exception as error:  # of the test's own code, on a value that it did not expect
        return "wrong", f"{type(error).__name__}: {error}"[:500]
    return "right", ""


def _main() -> None:
    """Part from the program, then read the case and say the verdict."""
    program = Program()
    work = partial(check, program) if sys.argv[1] == "check" else partial(compare, program, Program())
    close_to_others()
    sys.set_int_max_str_digits(0)
    case = json.loads(sys.stdin.buffer.read())
    said = json.dumps(verdict(work, case))
    # the nonce itself is never said: the program can read what is written here, and write too
    sys.stdout.write(f"\n{hmac.new(case['nonce'].encode(), said.encode(), 'sha256').hexdigest()} {said}\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    _main()
