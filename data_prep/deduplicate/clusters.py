"""Which documents say the same: exact copies, and candidates of a band whose Jaccard similarity is enough."""

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.deduplicate.exact import exact_pairs, shard_bounds
from data_prep.deduplicate.job import DeduplicateJob
from data_prep.deduplicate.stored import Values
from data_prep.deduplicate.texts import jaccard
from data_prep.io.files import make_parent, write_json

# Of one document in one band: where texts grow from one template a band can hold thousands that are not alike.
_MOST_FAILED_CHECKS = 200
_HELD_TEXTS = 512
_ROWS = 1 << 16


@dataclass
class _Clusters:
    """Union-find over document numbers; the root of a cluster is its first document. 4 bytes a document."""

    parents: "array[int]"

    def find(self, document: int) -> int:
        parents = self.parents
        while parents[document] != document:
            parents[document] = parents[parents[document]]
            document = parents[document]
        return document

    def join(self, one: int, other: int) -> None:
        first, later = sorted((self.find(one), self.find(other)))
        self.parents[later] = first

    def roots(self) -> npt.NDArray[np.uint32]:
        for document in range(len(self.parents)):  # parents come before their children
            self.parents[document] = self.parents[self.parents[document]]
        return np.frombuffer(self.parents, np.uint32)


@dataclass
class _Checker:
    """Compares candidates by the shingles that were stored of them."""

    shingles: Values
    threshold: float
    checks: int = 0
    cut_documents: int = 0
    _held: Callable[[int], npt.NDArray[np.uint64]] = field(init=False)

    def __post_init__(self) -> None:
        self._held = lru_cache(_HELD_TEXTS)(lambda document: np.frombuffer(self.shingles[document], np.uint64))

    def are_alike(self, one: int, other: int) -> bool:
        self.checks += 1
        first, second = self._held(one), self._held(other)
        shorter, longer = sorted((len(first), len(second)))
        return shorter >= self.threshold * longer and jaccard(first, second) >= self.threshold


def write_clusters(job: DeduplicateJob) -> None:
    """Write clusters/SHARD.u32: for each document the number of the one that stays for it, and clusters/counts.json."""
    base = shard_bounds(job)
    clusters = _Clusters(array("I", range(int(base[-1]))))
    for first, later in exact_pairs(job):
        clusters.join(first, later)
    shingles = Values(job.work / "shingles", base)
    checker = _Checker(shingles, job.threshold)
    for run in _runs(sorted((job.work / "pairs").glob("*.dups")), base):
        _join_alike(sorted(run), clusters, checker)
    shingles.close()
    roots = clusters.roots()
    for shard in range(len(job.files)):
        path = job.shard_file("clusters", shard, "u32")
        make_parent(path)
        roots[base[shard] : base[shard + 1]].tofile(path)
    write_json(job.work / "clusters" / "counts.json", {"checked": checker.checks, "cut": checker.cut_documents})


def _join_alike(run: list[int], clusters: _Clusters, checker: _Checker) -> None:
    """Join what is alike in a band, each document with the clusters before it: one that is alike is enough of each."""
    members: dict[int, list[int]] = {}
    for document in run:
        failed = 0
        for root in [root for root in members if root != clusters.find(document)]:
            for other in members[root]:
                if checker.are_alike(other, document):
                    clusters.join(other, document)
                    break
                failed += 1
                if failed == _MOST_FAILED_CHECKS:
                    break
            if failed == _MOST_FAILED_CHECKS:
                checker.cut_documents += 1
                break
        joined = [document]
        for root in [root for root in members if clusters.find(root) == clusters.find(document)]:
            joined += members.pop(root)
        members[clusters.find(document)] = joined


def _runs(files: list[Path], base: npt.NDArray[np.int64]) -> Iterator[list[int]]:
    """The documents that share a band's signature, from the pairs of neighbours that datatrove leaves (4 u32 each: file
    and number of both): a document comes once in a file, so neighbours that share one belong together.
    """
    for path in files:
        run: list[int] = []
        with path.open("rb") as file:
            while (rows := np.fromfile(file, "<u4", 4 * _ROWS).reshape(-1, 4)).size:
                ones, others = base[rows[:, 0]] + rows[:, 1], base[rows[:, 2]] + rows[:, 3]
                for one, other in zip(ones.tolist(), others.tolist(), strict=True):
                    if run and run[-1] == one:
                        run.append(other)
                    else:
                        if run:
                            yield run
                        run = [one, other]
        if run:
            yield run
