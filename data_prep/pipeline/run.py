"""Pull requests and the corpus engine as steps of datatrove: many files, on one machine, on Slurm or on Ray.

datatrove starts tasks and remembers which have ended; a task that it starts twice, or that is killed between our commit
and its note, changes nothing: every step finds its own finished output, or goes on with what it left.
"""

import ctypes
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread
from typing import Any, Literal, TextIO, cast

from datatrove.data import DocumentsPipeline
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import setup_default_logger
from multiprocess.process import parent_process

from data_prep.io.errors import InputError, WorkFailed
from data_prep.io.files import part_of
from data_prep.io.shards import ShardedJob
from data_prep.pipeline.tasks import keep_to_job, merge_shards, tokenize_shard
from data_prep.tokenize.tokenize import TokenizeJob

_PR_SET_PDEATHSIG = 1
_LOGGED = re.compile(r"\S* ?\S*\d{4}-\d\d-\d\d.* \| .*datatrove\.")  # loguru writes a message at once
ExecutorKind = Literal["local", "slurm", "ray"]


class EndWithStarter(PipelineStep):
    """First of a task's steps on one machine: a worker whose command was killed works on for nobody, and beside the
    next one."""

    name = "davinci"
    type = "PROCESS"

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Have this process end with the one that started it, if it is one of several."""
        if starter := parent_process():
            Thread(target=_end_after, args=(starter,), daemon=True).start()
        return data


def _end_after(starter: Any) -> None:
    starter.join()
    os.kill(os.getpid(), signal.SIGKILL)  # what it began stays unfinished, as after any kill


class TokenizeShard(PipelineStep):
    """Task r encodes every n-th input from number r on into the shard of its own below `out`."""

    name = "davinci tokenize"
    type = "TOKENIZER"

    def __init__(self, job: TokenizeJob, out: Path) -> None:
        super().__init__()
        self.job = job
        self.out = out

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Write the shard of one task."""
        manifest = tokenize_shard(self.job, self.out, rank, world_size)
        self.stat_update("documents", value=manifest["documents"], unit="task")
        self.stat_update("tokens", value=manifest["tokens"], unit="task")
        return data


class MergeShards(PipelineStep):
    """One task merges the shards of `tasks` tasks into the corpus `prefix`."""

    name = "davinci merge"
    type = "MERGER"

    def __init__(self, out: Path, tasks: int, prefix: Path) -> None:
        super().__init__()
        self.out, self.tasks, self.prefix = out, tasks, prefix

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Write the merged corpus."""
        manifest = merge_shards(self.out, self.tasks, self.prefix)
        self.stat_update("tokens", value=manifest["tokens"], unit="task")
        return data


def executor(
    kind: ExecutorKind, steps: list[PipelineStep], tasks: int, workers: int, logs: Path, **options: Any
) -> PipelineExecutor:
    """A datatrove executor for `tasks` tasks, `workers` at a time; `options` are those of its class.

    `depends` among them is the executor that must have ended before, of the same kind.
    """
    if kind == "ray":
        options = {name: _as_number(value) for name, value in options.items()}
    if kind == "local":
        steps = [EndWithStarter(), *steps]
    kinds = {"local": LocalPipelineExecutor, "slurm": SlurmPipelineExecutor, "ray": RayPipelineExecutor}
    try:
        return kinds[kind](pipeline=steps, tasks=tasks, workers=workers, logging_dir=str(logs), **options)
    except TypeError as error:  # an option that the executor does not know, or lacks
        example = ": --option partition=cpu --option time=04:00:00" if kind == "slurm" else ""
        raise InputError(f"datatrove's {kind} executor does not take these options{example} ({error})") from None


def _as_number(value: Any) -> Any:
    """The number that a text is, where it is one: Ray counts with its options."""
    for kind in (int, float):
        with suppress(TypeError, ValueError):
            return kind(value)
    return value


def start(job: PipelineExecutor) -> None:
    """Run it, or hand it in. Raises InputError where Slurm is not here, WorkFailed where it refuses."""
    if isinstance(job, SlurmPipelineExecutor) and shutil.which("sbatch") is None:
        raise InputError("sbatch is not on the path: start this where Slurm is, or with --executor local")
    try:
        if isinstance(job, RayPipelineExecutor):
            _run_on_ray(job)
        else:
            with _forks_end_with_us(), _logs_in_files():
                job.run()
    except subprocess.CalledProcessError as error:
        raise WorkFailed(
            f"{error.cmd[0]} refused a job, for the reason above: mend the --option that it names"
        ) from None


class _WithoutLogs:
    """A stderr to which datatrove's log lines do not come; they are in its log folder."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if _LOGGED.match(text):
            return len(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _logs_in_files() -> Iterator[None]:
    """On a terminal datatrove's logs would hide what is said to a person."""
    with redirect_stderr(cast(TextIO, _WithoutLogs(sys.stderr))):
        setup_default_logger()  # which holds on to the stderr of its time
        yield
    setup_default_logger()


@contextmanager
def _forks_end_with_us() -> Iterator[None]:
    """datatrove's manager is a fork that otherwise waits for ever after a killed command, with its output open."""
    _running.set()
    try:
        yield
    finally:
        _running.clear()


_running = Event()


def _end_with_starter() -> None:
    if _running.is_set():
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


os.register_at_fork(after_in_child=_end_with_starter)


def _run_on_ray(job: RayPipelineExecutor) -> None:
    """All that it depends on, then itself: datatrove only warns of a task that fails, and waits for it without end."""
    if find_spec("ray") is None:
        raise InputError("ray is not installed: pip install ray, or start this with --executor local")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not {"RAY_ADDRESS", "RAY_AUTH_MODE"} & os.environ.keys():
        # a cluster of our own: nobody else gives it work, and its token is written nowhere
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    chain = [job]
    while chain[0].depends:
        chain.insert(0, chain[0].depends)
    for each in chain:
        each.run()
        if failed := each.get_incomplete_ranks(skip_completed=True):
            raise WorkFailed(
                f"{len(failed)} of {each.world_size} tasks failed, for the reasons in {each.logging_dir.path}/logs: "
                "mend them, and start the same command again; what is done is not done again"
            )


def tokenize_shards(
    job: TokenizeJob, out: Path, tasks: int, workers: int, kind: ExecutorKind, merge_to: Path, **options: Any
) -> PipelineExecutor:
    """Executor of the whole job: shards below `out`, then one corpus. `start` it.

    Raises InputError when `out` holds shards of another job.
    """
    keep_to_job(job, out, tasks)
    shards = executor(kind, [TokenizeShard(job, out)], tasks, workers, out / "logs" / "tokenize", **options)
    merge = MergeShards(out, tasks, merge_to)
    return executor(kind, [merge], 1, 1, out / "logs" / "merge", depends=shards, **options)


class RunShards(PipelineStep):
    """Task r does every n-th shard of a job from number r on; what is done already is not done again."""

    name = "davinci shards"
    type = "SHARDS"

    def __init__(self, job: ShardedJob, out: Path) -> None:
        super().__init__()
        self.job, self.out = job, out

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Do the shards of one task."""
        self.job.step(self.out).run(rank, world_size)
        return data


class FinishShards(PipelineStep):
    """One task sums up, and gives the whole its name."""

    name = "davinci summary"
    type = "SHARDS"

    def __init__(self, job: ShardedJob, out: Path) -> None:
        super().__init__()
        self.job, self.out = job, out

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Write the summary."""
        self.job.step(self.out).finish(self.job.summarize)
        return data


def run_sharded(
    job: ShardedJob, out: Path, tasks: int, workers: int, kind: ExecutorKind, **options: Any
) -> PipelineExecutor:
    """Executor of a job that is done in shards. `start` it. Raises InputError on bad input."""
    step = job.step(out)
    if not 1 <= tasks <= len(step.shards):
        raise InputError(f"--tasks is {tasks}; it must be from 1 to {len(step.shards)}, the number of shards")
    if workers < 1:
        raise InputError(f"--workers is {workers}; it must be at least 1")
    logs = out.absolute().with_name(f"{out.name}.logs")
    if not part_of(out.absolute()).exists():  # of an output that is gone: datatrove would take its tasks for done
        shutil.rmtree(logs, ignore_errors=True)
    step.begin()
    shards = executor(kind, [RunShards(job, out.absolute())], tasks, workers, logs / "shards", **options)
    return executor(kind, [FinishShards(job, out.absolute())], 1, 1, logs / "summary", depends=shards, **options)
