"""All steps of a deduplication as one chain of datatrove's executors. Killed, and started again, it goes on."""

import fcntl
import os
import shutil
from pathlib import Path
from typing import Any

from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.minhash import MinhashDedupBuckets

from data_prep.deduplicate.clusters import write_clusters
from data_prep.deduplicate.exact import write_exact_pairs
from data_prep.deduplicate.job import BANDS, LEAST_THRESHOLD, DeduplicateJob
from data_prep.deduplicate.steps import CONFIG, OneStep, Signatures, described, finish, write_digests, write_outputs
from data_prep.io.errors import InputError
from data_prep.io.files import PART, part_of, read_json, refuse_existing, take_lock, write_json
from data_prep.pipeline.run import ExecutorKind, executor, start
from data_prep.tokenize.chunk import Columns
from data_prep.tokenize.inputs import check_columns, expand

_LINES_AT_ONCE = 1000  # of each file that datatrove merges


def deduplicate(
    inputs: list[str],
    key: str,
    out: Path,
    threshold: float,
    workers: int,
    kind: ExecutorKind = "local",
    options: dict[str, Any] | None = None,
) -> dict[str, Any] | None:
    """OUT/kept and OUT/dropped, a file for each input; returns the summary, None where jobs were handed in to Slurm.

    Raises InputError on bad input.
    """
    if not LEAST_THRESHOLD <= threshold <= 1:
        raise InputError(f"--threshold is {threshold}; it must be from {LEAST_THRESHOLD} to 1")
    if workers < 1:
        raise InputError(f"--workers is {workers}; it must be at least 1")
    job = DeduplicateJob(tuple(path.absolute() for path in expand(inputs)), key, threshold, out.absolute())
    refuse_existing(job.out)
    check_columns(list(job.files), Columns(((key,),)))
    job.out.parent.mkdir(parents=True, exist_ok=True)
    lock_file = job.out.with_name(f"{job.out.name}.lock{PART}")
    lock = take_lock(lock_file, fcntl.lockf)  # this process's own: children of datatrove outlive a kill
    try:
        _begin(job)
        start(_chain(job, workers, kind, options or {}))
        if kind == "slurm":
            return None
        shutil.rmtree(job.work)
        summary: dict[str, Any] = read_json(job.out / "summary.json")
        if not summary["records"]:
            shutil.rmtree(job.out)
            raise InputError(
                f"no record holds a text under {key!r} ({summary['broken_records']} broken): see --json-key"
            )
        return summary
    finally:
        lock_file.unlink(missing_ok=True)
        os.close(lock)


def _begin(job: DeduplicateJob) -> None:
    """Make, or find, the folders of what is unfinished. Raises InputError where they are another job's."""
    note = part_of(job.out) / "job.json"
    if not note.exists():  # what lies in the work folder is of no use without it, whatever datatrove noted there
        shutil.rmtree(job.work, ignore_errors=True)
    elif read_json(note) != described(job):
        raise InputError(f"{note.parent} was begun with other inputs or options: remove it, or name another")
    write_json(note, described(job))


def _chain(job: DeduplicateJob, workers: int, kind: ExecutorKind, options: dict[str, Any]) -> PipelineExecutor:
    shards = len(job.files)
    signatures, pairs = str(job.work / "signatures"), str(job.work / "pairs")
    stages: list[tuple[str, PipelineStep, int]] = [
        ("digests", OneStep(job, write_digests), shards),
        ("exact", OneStep(job, _exact), 1),
        ("signatures", Signatures(job), shards),
        ("pairs", MinhashDedupBuckets(signatures, pairs, config=CONFIG, lines_to_buffer=_LINES_AT_ONCE), BANDS),
        ("clusters", OneStep(job, _clusters), 1),
        ("outputs", OneStep(job, write_outputs), shards),
        ("finish", OneStep(job, finish), 1),
    ]
    last: PipelineExecutor | None = None
    for name, step, tasks in stages:
        at_once = min(workers, tasks)
        last = executor(kind, [step], tasks, at_once, job.work / "logs" / name, depends=last, **options)
    assert last is not None
    return last


def _exact(job: DeduplicateJob, task: int) -> None:
    write_exact_pairs(job)


def _clusters(job: DeduplicateJob, task: int) -> None:
    write_clusters(job)
