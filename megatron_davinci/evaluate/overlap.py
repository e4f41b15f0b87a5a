"""Which documents of a held-out corpus were trained on after all. Torch-free."""

from collections.abc import Iterable
from pathlib import Path

from xxhash import xxh3_128_digest

from data_prep import InputError
from data_prep.corpus import Corpus


def documents_of(corpus: Corpus, others: Iterable[Path]) -> frozenset[int]:
    """Documents of `corpus` whose tokens are a document of one of `others`; those that are not here say nothing.

    Raises InputError where no document is left.
    """
    known = set()
    for path in others:
        if path.with_name(f"{path.name}.idx").is_file():
            known |= set(_fingerprints(Corpus(path)))
    found = frozenset(number for number, print_ in enumerate(_fingerprints(corpus)) if print_ in known)
    if len(found) == len(corpus):
        raise InputError(
            f"{corpus.prefix} holds nothing but documents that the recipe trains on: give a corpus that was held out"
        )
    return found


def _fingerprints(corpus: Corpus) -> Iterable[bytes]:
    return (xxh3_128_digest(corpus[number].tobytes()) for number in range(len(corpus)))
