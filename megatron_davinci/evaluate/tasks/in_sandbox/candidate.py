"""A program that a model wrote, behind a pipe: arguments come in, plain data goes out.

It runs in the sandbox, beside `tester.py`, which trusts nothing that comes from here. First line: the program, the name
of its function, its limits. Then a line of arguments for each call. The benchmark's own solution runs in the same way.
"""

import json
import os
import resource
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from plain_data import NotPlain, close_to_others, decode, encode

_ASKED, _ANSWERS = 3, 4  # descriptors


def serve(asked: int, answers: int) -> None:
    """Serve calls until the tester closes the pipe; nothing else of the tester's stays open."""
    _keep_alone(asked, answers)
    sys.path.pop(0)
    sys.set_int_max_str_digits(0)
    with os.fdopen(_ASKED, "r") as questions, os.fdopen(_ANSWERS, "w") as told:
        first = json.loads(questions.readline())
        if first["closed"]:
            close_to_others()
        _limit(first["cpu_seconds"], first["memory_bytes"])
        module = sys.modules["solution"] = ModuleType("solution")  # where dataclasses look for it
        names = module.__dict__

        def define() -> None:
            exec(compile(first["program"], "solution.py", "exec"), names)

        def say(outcome: Any) -> None:
            told.write(json.dumps(outcome) + "\n")
            told.flush()

        say(_outcome(define))
        for line in questions:
            arguments = decode(json.loads(line))
            say(_outcome(lambda given=arguments: names[first["entry_point"]](*given)))


def _keep_alone(asked: int, answers: int) -> None:
    """What the program reads and prints goes nowhere."""
    asked, answers = os.dup(asked), os.dup(answers)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    spare = os.dup2(asked, 100), os.dup2(answers, 101)
    os.dup2(spare[0], _ASKED)
    os.dup2(spare[1], _ANSWERS)
    os.closerange(_ANSWERS + 1, 1024)


def _limit(cpu_seconds: int, memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def _outcome(work: Callable[[], Any]) -> Any:
    """What work gives, for json.dumps."""
    try:
        return {"value": encode(work())}
    except NotPlain as error:
        return {"raised": f"a {error} is no plain data"}
    except BaseException as error:  # SystemExit too: the program has not answered
        return {"raised": f"{type(error).__name__}: {error}"[:500]}
