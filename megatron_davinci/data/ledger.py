"""The ledger of a run: what was consumed, per stage and epoch, as sums that no order and no layout of ranks changes.

A document of n tokens adds F(d, n) - F(d, 0) to the fingerprint, F being a hash; a span from a to b adds
F(d, b) - F(d, a), modulo 2^64. So the spans of one document, in whatever batches and on whatever ranks, add up to the
document, each token once; a token twice or a token missing shows. Torch-free.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from data_prep.io.arrays import Int64s
from megatron_davinci.data.documents import PackedSequence

UInt64s = npt.NDArray[np.uint64]
_MODULUS = 1 << 64


@dataclass(frozen=True)
class Tally:
    """Documents whose last token was consumed, tokens, and their fingerprint (below 2^64)."""

    documents: int = 0
    tokens: int = 0
    fingerprint: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.documents + other.documents,
            self.tokens + other.tokens,
            (self.fingerprint + other.fingerprint) % _MODULUS,
        )

    @classmethod
    def of_spans(cls, document: Int64s, start: Int64s, length: Int64s, lengths: Int64s) -> Self:
        """Spans as arrays (spans,); `lengths` (documents,) of all documents."""
        ends = start + length
        to_end, to_start = (int(_hash(document, at).sum(dtype=np.uint64)) for at in (ends, start))
        return cls(int((ends == lengths[document]).sum()), int(length.sum()), (to_end - to_start) % _MODULUS)


def tally_by_epoch(sequences: Iterable[PackedSequence], lengths: Int64s) -> dict[int, Tally]:
    """What each epoch's spans in some packed sequences come to."""
    spans = np.array([span for sequence in sequences for span in sequence], np.int64).reshape(-1, 4)
    document, start, length, epochs = spans.T
    return {
        epoch: Tally.of_spans(document[drawn], start[drawn], length[drawn], lengths)
        for epoch in np.unique(epochs).tolist()
        for drawn in [epochs == epoch]
    }


class Ledger:
    """Tallies by stage and epoch. `entries` are those of a checkpoint."""

    def __init__(self, entries: Iterable[dict[str, Any]] = ()) -> None:
        self._tallies = {
            (entry["stage"], entry["epoch"]): Tally(
                entry["documents"], entry["tokens"], int(entry["fingerprint"], base=16)
            )
            for entry in entries
        }

    def add(self, stage: str, epoch: int, tally: Tally) -> None:
        """Enter what all ranks together have consumed."""
        self._tallies[stage, epoch] = self._tallies.get((stage, epoch), Tally()) + tally

    @property
    def tokens(self) -> int:
        """All that was entered."""
        return sum(tally.tokens for tally in self._tallies.values())

    def check(self, stage: str, epoch: int, expected: Tally) -> None:
        """Raise RuntimeError unless a finished epoch consumed exactly what it holds, each token once."""
        found = self._tallies.get((stage, epoch), Tally())
        if found != expected:
            raise RuntimeError(f"epoch {epoch} of stage {stage} consumed {found}, but it holds {expected}")

    def entries(self) -> list[dict[str, Any]]:
        """For JSON, in the order of consumption."""
        return [
            {
                "stage": stage,
                "epoch": epoch,
                "documents": tally.documents,
                "tokens": tally.tokens,
                "fingerprint": f"{tally.fingerprint:016x}",
            }
            for (stage, epoch), tally in self._tallies.items()
        ]


def is_ledger(entries: Any, step: int) -> bool:
    """Whether a checkpoint's entries can be what a run of so many steps has written."""
    names = {"stage": str, "epoch": int, "documents": int, "tokens": int, "fingerprint": str}
    return (
        isinstance(entries, list)
        and (not entries or step > 0)
        and all(
            isinstance(entry, dict)
            and all(type(entry.get(name)) is kind for name, kind in names.items())
            and len(entry["fingerprint"]) == 16
            and set(entry["fingerprint"]) <= set("0123456789abcdef")
            for entry in entries
        )
    )


def _hash(document: Int64s, position: Int64s) -> UInt64s:
    """F(d, p): two rounds of the finalizer of SplitMix64 (Steele, Lea, Flood 2014); products wrap modulo 2^64."""
    return _mix(_mix(document.astype(np.uint64)) + position.astype(np.uint64))


def _mix(x: UInt64s) -> UInt64s:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
