"""Programs that a command starts, and that Ctrl-C ends with it."""

import subprocess
from collections.abc import Mapping, Sequence

_SECONDS = 45  # torchrun gives its ranks 30


def run_child(
    command: Sequence[str], environment: Mapping[str, str], keep_errors: bool = False
) -> "subprocess.CompletedProcess[str]":
    """subprocess.run that leaves nobody behind: Ctrl-C waits for the child, which has children of its own to end.

    `keep_errors`: what it says on stderr is returned instead of shown.
    """
    errors = subprocess.PIPE if keep_errors else None
    with subprocess.Popen(list(command), stderr=errors, text=True, env=dict(environment)) as child:
        try:
            _, said = child.communicate()
        except KeyboardInterrupt:
            child.terminate()
            try:
                child.communicate(timeout=_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
            raise
    return subprocess.CompletedProcess(list(command), child.returncode, None, said)
