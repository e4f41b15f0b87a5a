"""Work in threads ends with Ctrl-C, whichever thread the kernel gives it to."""

import subprocess
import sys

PROGRAM = """
import signal, threading, time
from data_prep.io.threads import run_in_threads

def work(item):
    time.sleep(0.5)  # the main thread waits by now
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)
    time.sleep(60)

signal.signal(signal.SIGINT, signal.default_int_handler)
run_in_threads(work, [1], 1)
"""


def test_ctrl_c_that_another_thread_was_given_ends_the_wait() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=30)
    assert ended.returncode != 0 and "KeyboardInterrupt" in ended.stderr
