"""Exact copies: digests of all texts, sorted a part of their range at a time."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.deduplicate.job import DeduplicateJob

_DIGEST_BYTES = 16
_DIGESTS_AT_ONCE = 500_000
_BLOCK = 1 << 16


def shard_bounds(job: DeduplicateJob) -> npt.NDArray[np.int64]:
    """The number of the first document of each shard, and of all documents: (shards + 1,)."""
    sizes = [job.shard_file("digests", s, "xxh128").stat().st_size // _DIGEST_BYTES for s in range(len(job.files))]
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


def write_exact_pairs(job: DeduplicateJob) -> None:
    """Write exact/pairs.u64, (first, later) of every text that comes again, and the later ones of each shard."""
    base = shard_bounds(job)
    folder = job.work / "exact"
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        path.unlink()  # of an attempt that was killed
    parts = max(1, -(-int(base[-1]) // _DIGESTS_AT_ONCE))
    with (folder / "pairs.u64").open("wb") as out:
        for part in range(parts):
            pairs = _pairs(job, base, part, parts)
            pairs.tofile(out)
            shards = np.searchsorted(base, pairs[:, 1], "right") - 1
            for shard in np.unique(shards).tolist():
                with job.shard_file("exact", shard, "u32").open("ab") as file:
                    (pairs[shards == shard, 1] - base[shard]).astype(np.uint32).tofile(file)


def _pairs(job: DeduplicateJob, base: npt.NDArray[np.int64], part: int, parts: int) -> npt.NDArray[np.int64]:
    """The pairs of equal digests in one part of the range of digests."""
    keys, places = [np.zeros((0, 2), np.uint64)], [np.zeros(0, np.int64)]
    for shard in range(len(job.files)):
        for start, block in _blocks(job.shard_file("digests", shard, "xxh128")):
            mine = np.flatnonzero(block[:, 0] % np.uint64(parts) == part)
            keys.append(block[mine])
            places.append(mine + start + base[shard])
    key, place = np.concatenate(keys), np.concatenate(places)
    order = np.lexsort((key[:, 1], key[:, 0]))  # stable: of equal ones the first comes first
    key, place = key[order], place[order]
    again = np.zeros(len(order), np.bool_)
    again[1:] = (key[1:] == key[:-1]).all(axis=1)
    first = np.maximum.accumulate(np.where(again, 0, np.arange(len(order))))
    return np.stack([place[first[again]], place[again]], axis=1)


def _blocks(path: Path) -> Iterator[tuple[int, npt.NDArray[np.uint64]]]:
    start = 0
    with path.open("rb") as file:
        while (block := np.fromfile(file, np.uint64, 2 * _BLOCK).reshape(-1, 2)).size:
            yield start, block
            start += len(block)


def exact_pairs(job: DeduplicateJob) -> Iterator[tuple[int, int]]:
    """(first, later) of every text that comes again."""
    for _, block in _blocks(job.work / "exact" / "pairs.u64"):
        yield from ((int(first), int(later)) for first, later in block)


def exact_copies(job: DeduplicateJob, shard: int) -> frozenset[int]:
    """Numbers, in their shard, of the documents whose text has come before."""
    path = job.shard_file("exact", shard, "u32")
    return frozenset(np.fromfile(path, np.uint32).tolist()) if path.exists() else frozenset()
