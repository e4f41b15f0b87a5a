"""What is compared of a text: its words, in runs of a few."""

import re

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest, xxh3_128_digest

from data_prep.deduplicate.job import SHINGLE_WORDS

_WORD = re.compile(r"\w+|[^\w\s]")  # code says much in its punctuation


def split_words(text: str) -> list[str]:
    """Runs of word characters, and every other visible character alone, in lower case."""
    return _WORD.findall(text.lower())


def shingles_of(text: str) -> npt.NDArray[np.uint64]:
    """Hashes of all runs of SHINGLE_WORDS words, each once, in order: (distinct shingles,). A short text has none."""
    words = split_words(text)
    runs = (" ".join(words[at : at + SHINGLE_WORDS]) for at in range(len(words) - SHINGLE_WORDS + 1))
    hashes = (xxh3_64_intdigest(run.encode("utf-8", "surrogatepass")) for run in runs)
    return np.unique(np.fromiter(hashes, np.uint64))


def digest_of(text: str) -> bytes:
    """16 bytes that equal texts share."""
    return xxh3_128_digest(text.encode("utf-8", "surrogatepass"))


def jaccard(one: npt.NDArray[np.uint64], other: npt.NDArray[np.uint64]) -> float:
    """Shared shingles over all shingles of two texts, each given in order."""
    both = np.concatenate((one, other))
    both.sort()
    common = int(np.count_nonzero(both[1:] == both[:-1]))
    return common / (len(both) - common) if len(both) else 0.0
