"""Work is judged by itself: what cannot be judged is not wrong, and takes no verdict from others."""

import os
import signal
import threading
import time
from contextlib import suppress

import psutil
import pytest

from megatron_davinci.rl import math_grader
from megatron_davinci.rl.math_grader import are_equal

SLOW = [("7", rf"\frac{{{number + 7}^{{9^{{9}}}}}}{{3}}") for number in range(6)]
PLAIN = [(str(number), f"{number}.0") for number in range(100, 130)]


def test_slow_answers_take_no_verdicts_from_others() -> None:
    verdicts = are_equal([*SLOW, *PLAIN])
    assert all(verdicts[pair] is True for pair in PLAIN)
    assert all(verdicts[pair] is False for pair in SLOW)  # each had its own time


def test_without_time_nothing_is_judged_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_grader, "_ALL_SECONDS", 0.0)
    found = math_grader._compare(PLAIN[:3])
    assert set(found.values()) == {None}


def test_a_grader_that_others_kill_costs_no_verdict() -> None:
    stop, killed = threading.Event(), list[int]()

    def kill_one() -> None:
        while not stop.is_set():
            for child in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    is_grader = "spawn_main" in " ".join(child.cmdline())
                    if is_grader and child.cpu_times().user > 1.3:  # it has begun to work
                        os.kill(child.pid, signal.SIGKILL)
                        killed.append(child.pid)
                        return
            time.sleep(0.05)

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        verdicts = are_equal([(str(n), rf"\frac{{{2 * n}}}{{2}}") for n in range(2000, 12_000)])
    finally:
        stop.set()
        killer.join()
    assert killed and False not in verdicts.values()
