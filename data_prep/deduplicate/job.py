"""What `davinci data deduplicate` is asked to do."""

from dataclasses import dataclass
from pathlib import Path

# A pair of Jaccard similarity s shares a band with probability 1 - (1 - s^ROWS)^BANDS: 0.9996 at 0.8, 0.975 at 0.7.
BANDS, ROWS = 20, 5
SHINGLE_WORDS = 5
LEAST_THRESHOLD = 0.7


@dataclass(frozen=True)
class DeduplicateJob:
    """`files` are read in order, each a shard: of records that say the same the first stays. Two texts say the same
    where the Jaccard similarity of their shingles (`SHINGLE_WORDS` words each) is `threshold` or more.
    """

    files: tuple[Path, ...]
    key: str
    threshold: float
    out: Path

    @property
    def work(self) -> Path:
        """Folder of digests, signatures and logs, until all is done."""
        return self.out.with_name(f"{self.out.name}.work")

    def shard_file(self, folder: str, shard: int, suffix: str) -> Path:
        """Where a step leaves something of one shard."""
        return self.work / folder / f"{shard:05d}.{suffix}"
