"""`davinci` in processes that are forked from one with Megatron imported, which saves each of them seconds of a core.

They differ from a user's in this alone. Tests of what starting or ending a process does start one as a user would.
"""

import multiprocessing
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from megatron_davinci.testing.ranks import rank_environments

Ended = subprocess.CompletedProcess[str]


def run_davinci(*arguments: object, cwd: Path | None = None, timeout: float = 120, **environment: str) -> Ended:
    """Run `davinci ARGUMENTS`; `environment` is added to this process's."""
    with TemporaryDirectory() as said, Forked(arguments, Path(said), environment, cwd) as process:
        return process.end(timeout)


def run_davinci_on_ranks(world_size: int, *arguments: object, timeout: float = 300) -> Ended:
    """Run `davinci ARGUMENTS` on every rank of a world, with torchrun's environment; on one, without.

    The outputs are those of all ranks; the status is that of the first rank that fails.
    """
    if world_size == 1:
        return run_davinci(*arguments, timeout=timeout)
    with ExitStack() as stack:
        said = [Path(stack.enter_context(TemporaryDirectory())) for _ in range(world_size)]
        ranks = [
            stack.enter_context(Forked(arguments, folder, environment))
            for folder, environment in zip(said, rank_environments(world_size), strict=True)
        ]
        ended = [rank.end(timeout) for rank in ranks]
    status = next((rank.returncode for rank in ended if rank.returncode), 0)
    outputs = ("".join(texts) for texts in zip(*((rank.stdout, rank.stderr) for rank in ended), strict=True))
    return subprocess.CompletedProcess(ended[0].args, status, *outputs)


class Forked:
    """A running `davinci ARGUMENTS`, whose outputs go to files in `said`; it is killed where its block is left."""

    def __init__(
        self, arguments: tuple[object, ...], said: Path, environment: dict[str, str], cwd: Path | None = None
    ) -> None:
        self._words = [str(argument) for argument in arguments]
        self._outputs = [said / "stdout", said / "stderr"]
        place = str(cwd or Path.cwd())
        self._process = multiprocessing.get_context("forkserver").Process(
            target=_davinci, args=(self._words, place, {**os.environ, **environment}, self._outputs)
        )

    def __enter__(self) -> "Forked":
        for output in self._outputs:
            output.touch()
        self._process.start()
        return self

    def end(self, timeout: float) -> Ended:
        """Wait for its end. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._words, timeout)
        stdout, stderr = (output.read_text() for output in self._outputs)
        return subprocess.CompletedProcess(self._words, self._process.exitcode, stdout, stderr)

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()


def _davinci(words: list[str], cwd: str, environment: dict[str, str], outputs: list[Path]) -> None:
    """What the forked process does."""
    for descriptor, path in enumerate(outputs, 1):
        with path.open("ab") as output:
            os.dup2(output.fileno(), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path[:0] = [cwd, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]  # as `python -m` does
    sys.argv = ["davinci", *words]
    from megatron_davinci.cli import main

    main()
