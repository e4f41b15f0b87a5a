"""Several corpora as one, in memory that does not grow with them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.corpus.indexed import Corpus, CorpusWriter

TOKENS_PER_COPY = 4 << 20


def merge_corpora(corpora: Sequence[Corpus], prefix: Path) -> dict[str, Any]:
    """Write the documents of all corpora, in order, as a new corpus; returns its manifest."""
    everything = [np.arange(len(corpus)) for corpus in corpora]
    return copy_documents(corpora, everything, prefix, {"merged": [str(corpus.prefix) for corpus in corpora]})


def copy_documents(
    corpora: Sequence[Corpus], chosen: Sequence[npt.NDArray[np.int64]], prefix: Path, provenance: dict[str, Any]
) -> dict[str, Any]:
    """Write the chosen documents of each corpus as a new corpus; returns its manifest.

    Raises InputError when none is chosen, and then leaves nothing.
    """
    writer = CorpusWriter(prefix, corpora[0].tokenizer)
    try:
        for corpus, documents in zip(corpora, chosen, strict=True):
            for batch in _batches(corpus, documents):
                writer.add(batch)
        return writer.commit(provenance)
    except BaseException:
        writer.discard()
        raise


def _batches(corpus: Corpus, documents: npt.NDArray[np.int64]) -> Iterator[list[npt.NDArray[np.int64]]]:
    batch: list[npt.NDArray[np.int64]] = []
    size = 0
    for document in documents.tolist():
        batch.append(corpus[document])
        size += len(batch[-1])
        if size >= TOKENS_PER_COPY:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
