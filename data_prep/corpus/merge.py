"""Several corpora as one, in memory that does not grow with them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.corpus.indexed import Corpus
from data_prep.corpus.record_notes import added_up
from data_prep.corpus.writer import CorpusWriter
from data_prep.io.errors import InputError

TOKENS_PER_COPY = 4 << 20


def merge_corpora(
    corpora: Sequence[Corpus], prefix: Path, without_documents: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """Write the documents of all corpora, in order, as a new corpus; returns its manifest.

    `without_documents` are the provenances of inputs that gave none: what was left out of them counts too.
    """
    everything = [np.arange(len(corpus)) for corpus in corpora]
    merged = {"merged": [str(corpus.prefix) for corpus in corpora], **_notes_of(corpora, without_documents)}
    return copy_documents(corpora, everything, prefix, merged)


def _notes_of(corpora: Sequence[Corpus], without_documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What was left out or changed on the way into the corpora, added up."""
    manifests = [corpus.manifest for corpus in corpora]
    dropped = sum(manifest["empty_documents_dropped"] for manifest in manifests)
    notes = added_up([*(manifest["provenance"] for manifest in manifests), *without_documents]).as_dict()
    return {**notes, "empty_documents_dropped_before": dropped}


def copy_documents(
    corpora: Sequence[Corpus], chosen: Sequence[npt.NDArray[np.int64]], prefix: Path, provenance: dict[str, Any]
) -> dict[str, Any]:
    """Write the chosen documents of each corpus (numbers, ascending) as a new corpus; returns its manifest.

    Where one corpus has a loss mask the new one has it: documents of a corpus without are trained whole. Raises
    InputError when no document is chosen, and then leaves nothing.
    """
    writer = CorpusWriter(prefix, corpora[0].tokenizer, masked=any(corpus.masked for corpus in corpora))
    try:
        for corpus, documents in zip(corpora, chosen, strict=True):
            for batch in _batches(corpus, documents):
                _copy(corpus, batch, writer)
        return writer.commit(provenance)
    except ValueError as error:
        writer.discard()
        raise InputError(
            f"a corpus holds what its manifest does not allow ({error}): check it with data verify"
        ) from None
    except BaseException:
        writer.discard()
        raise


def _copy(corpus: Corpus, documents: npt.NDArray[np.int64], writer: CorpusWriter) -> None:
    for run in np.split(documents, np.flatnonzero(np.diff(documents) != 1) + 1):
        place, sequences, per_document = corpus.run_of(int(run[0]), int(run[-1]) + 1)
        ids = corpus.tokens[place]
        mask = np.ones(len(ids), np.uint8) if corpus.loss_mask is None else corpus.loss_mask[place]
        writer.add_flat(ids, sequences, per_document, loss_mask=mask)


def _batches(corpus: Corpus, documents: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    """Cut a list of documents where another TOKENS_PER_COPY tokens are full."""
    ends = np.cumsum(corpus.lengths[documents])
    full = np.searchsorted(ends, np.arange(TOKENS_PER_COPY, ends[-1] if len(ends) else 0, TOKENS_PER_COPY)) + 1
    yield from (batch for batch in np.split(documents, np.unique(full)) if len(batch))
