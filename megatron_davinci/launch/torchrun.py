"""torchrun, silent where ranks have said what was wrong: `python -m megatron_davinci.launch.torchrun`, its flags.

torchrun itself ends in a traceback of its own after each signal, and after a sentence of a rank's.
"""

import logging
import signal
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

_NO_NEWS = ("death signal", "closing signal", "failed (exitcode")  # the ranks, or the caller, have said it
_SAID_BY_A_RANK = (1, 2, 3)


def run() -> int:
    """Run ranks as torchrun does; the exit code is that of the first that failed, or 128 + a signal."""
    for name in ("agent.server.api", "multiprocessing.api"):
        logger = logging.getLogger(f"torch.distributed.elastic.{name}")
        logger.addFilter(lambda record: not any(each in record.getMessage() for each in _NO_NEWS))
    try:
        main()
    except SignalException as end:
        return 128 + int(end.sigval)
    except ChildFailedError as failed:
        rank, first = failed.get_first_failure()
        if first.exitcode in _SAID_BY_A_RANK:
            return int(first.exitcode)
        by = signal.Signals(-first.exitcode).name if first.exitcode < 0 else f"exit code {first.exitcode}"
        print(f"error: rank {rank} ended by {by}: see what it printed above", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run())
