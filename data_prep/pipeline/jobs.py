"""A job over many shards: in this process, or as tasks of datatrove."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from data_prep.io.errors import InputError
from data_prep.io.files import read_json
from data_prep.io.progress import counter
from data_prep.io.shards import ShardedJob, run_in_process

Executor = Literal["local", "slurm", "ray"]


def run_job(
    job: ShardedJob,
    out: Path,
    what: str,
    tasks: int,
    workers: int,
    executor: Executor,
    options: Sequence[str],
    quiet: bool,
) -> dict[str, Any] | None:
    """The summary of a job, or None where its tasks have only been handed in.

    `what` is counted while it runs, unless `quiet`. `options`: name=value for datatrove's executor.
    """
    if executor == "local" and options:
        raise InputError(f"--option {options[0]} is for slurm or ray: add --executor, or leave it out")
    if workers < 1:
        raise InputError(f"--workers is {workers}; it must be at least 1")
    if executor == "local" and tasks == 1:
        with counter(what, quiet=quiet) as advance:
            return run_in_process(job, out, advance)
    from data_prep.pipeline.run import run_sharded, start  # datatrove is imported where it is used alone

    named = dict(text.partition("=")[::2] for text in options)
    start(run_sharded(job, out, tasks, workers, executor, **named))
    if executor == "slurm":
        return None
    summary: dict[str, Any] = read_json(out / "summary.json")
    return summary
