"""The steps as datatrove runs them: a task for each shard, a task for each band, or one task."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
from datatrove.utils.word_tokenizers import WordTokenizer

from data_prep.deduplicate.exact import exact_copies, shard_bounds
from data_prep.deduplicate.job import BANDS, ROWS, SHINGLE_WORDS, DeduplicateJob
from data_prep.deduplicate.reading import shard_documents
from data_prep.deduplicate.stored import Values, ValuesWriter, place_of
from data_prep.deduplicate.texts import digest_of, shingles_of, split_words
from data_prep.io.files import jsonl_writer, make_parent, part_of, publish, read_json, write_json

CONFIG = MinhashConfig(n_grams=SHINGLE_WORDS, num_buckets=BANDS, hashes_per_bucket=ROWS)
_SHINGLES_AT_ONCE = 1024
_PRIME = np.uint64((1 << 61) - 1)


class OneStep(PipelineStep):
    """A function of a job and a task's number as a step of datatrove."""

    name, type = "davinci deduplicate", "DEDUP"

    def __init__(self, job: DeduplicateJob, work: Callable[[DeduplicateJob, int], None]) -> None:
        super().__init__()
        self.job, self.work = job, work

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Do the work of one task."""
        self.work(self.job, rank)
        return data


def write_digests(job: DeduplicateJob, shard: int) -> None:
    """Digest and id of each document of a shard."""
    digests = job.shard_file("digests", shard, "xxh128")
    make_parent(digests)
    with digests.open("wb") as file, ValuesWriter(job.shard_file("ids", shard, "values")) as ids:
        for document in shard_documents(job, shard):
            file.write(digest_of(document.text))
            ids.add(document.id.encode("utf-8", "surrogatepass"))


class Signatures(MinhashDedupSignature):
    """datatrove's MinHash signatures over our words; the shingles are kept, for pairs to be checked by them."""

    def __init__(self, job: DeduplicateJob) -> None:
        super().__init__(str(job.work / "signatures"), CONFIG, language=_Words())
        self.job = job

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        """Sign the documents of one shard that are no exact copies."""
        with ValuesWriter(self.job.shard_file("shingles", rank, "values")) as self._shingles:
            super().run(shard_documents(self.job, rank, exact_copies(self.job, rank)), rank, world_size)
        del self._shingles

    def get_shingles(self, text: str) -> npt.NDArray[np.uint64]:
        """(shingles, 1), as datatrove wants them."""
        found = shingles_of(text)
        self._shingles.add(found.tobytes())
        return found.reshape(-1, 1)

    def get_signature(self, shingles: npt.NDArray[np.uint64]) -> list[list[int]]:
        """The least hash under each of datatrove's permutations, by band; a long text's a few shingles at a time."""
        factors, terms = self.parameters
        least = np.full(self.num_hashes, np.iinfo(np.uint64).max, np.uint64)
        for at in range(0, len(shingles), _SHINGLES_AT_ONCE):
            hashes = (shingles[at : at + _SHINGLES_AT_ONCE] * factors + terms) % _PRIME
            least = np.minimum(least, hashes.min(axis=0))
        signature: list[list[int]] = least.reshape(BANDS, -1).tolist()
        return signature


class _Words(WordTokenizer):
    """Our words, for datatrove, whose own tokenizers want models that are downloaded; MinHash asks for words alone."""

    def word_tokenize(self, text: str) -> list[str]:
        return split_words(text)

    def sent_tokenize(self, text: str) -> list[str]:
        raise NotImplementedError

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        raise NotImplementedError


def write_outputs(job: DeduplicateJob, shard: int) -> None:
    """kept/SHARD and dropped/SHARD of one shard, and what is counted of it."""
    base, counts = shard_bounds(job), Counter[str]()
    roots = np.fromfile(job.shard_file("clusters", shard, "u32"), np.uint32)
    exact, ids = exact_copies(job, shard), Values(job.work / "ids", base)
    name = f"{shard:05d}.jsonl.zst"
    part = part_of(job.out)
    with jsonl_writer(part / "kept" / name) as kept, jsonl_writer(part / "dropped" / name) as dropped:
        for number, document in enumerate(shard_documents(job, shard, on_broken=lambda: counts.update(["broken"]))):
            root = int(roots[number])
            if root == base[shard] + number:
                kept.write(document.metadata["record"])
                counts["kept"] += 1
                continue
            reason = "exact" if number in exact else "near"
            counts[reason] += 1
            of_shard, of_number = place_of(root, base)
            stays = {"id": ids[root].decode("utf-8", "surrogatepass"), "file": job.files[of_shard].name}
            here = {"id": document.id, "file": job.files[shard].name, "record": document.metadata["number"]}
            dropped.write({**here, "reason": reason, "kept": {**stays, "document": of_number}})
    ids.close()
    write_json(job.shard_file("counts", shard, "json"), counts)


def finish(job: DeduplicateJob, task: int) -> None:
    """Write the summary, and give the whole its name."""
    counts = sum((Counter(read_json(job.shard_file("counts", s, "json"))) for s in range(len(job.files))), Counter())
    checked = read_json(job.work / "clusters" / "counts.json")
    summary = {
        "records": counts["kept"] + counts["exact"] + counts["near"],
        "kept": counts["kept"],
        "dropped": {"exact": counts["exact"], "near": counts["near"]},
        "broken_records": counts["broken"],
        "threshold": job.threshold,
        "pairs_checked": checked["checked"],
        "documents_with_checks_cut": checked["cut"],
    }
    part = part_of(job.out)
    write_json(part / "summary.json", summary)
    publish(part, job.out)
    Path(job.out / "job.json").unlink()


def described(job: DeduplicateJob) -> dict[str, Any]:
    """What tells one job from another."""
    files = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in job.files]
    return {"files": files, "key": job.key, "threshold": job.threshold}
