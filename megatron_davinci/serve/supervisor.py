"""Run a command that ends with the process that wanted it, however that ends. The standard library alone.

`python supervisor.py FD COMMAND...`: FD is the reading end of a pipe of which the starter holds the other one. When
that closes, the command's whole session is killed: vLLM's server has processes of its own, which outlive it otherwise.
Signals that launchers send to process groups are the starter's affair.
"""

import ctypes
import os
import signal
import subprocess
import sys
from contextlib import suppress
from threading import Thread

_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1


def _begin() -> None:
    """In the command's process, before it becomes the command."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> int:
    """Exit code of the command; 137 where the starter has gone."""
    lifeline, command = int(sys.argv[1]), sys.argv[2:]
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    running = subprocess.Popen(command, start_new_session=True, preexec_fn=_begin)
    Thread(target=_kill_when_closed, args=(lifeline, running.pid), daemon=True).start()
    code = running.wait()
    _kill_session(running.pid)
    return code if code >= 0 else 128 - code


def _kill_when_closed(lifeline: int, session: int) -> None:
    while os.read(lifeline, 1):
        pass
    _kill_session(session)


def _kill_session(session: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(session, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
