"""Several corpora as one, in memory that does not grow with them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.corpus.indexed import Corpus
from data_prep.corpus.writer import CorpusWriter

TOKENS_PER_COPY = 4 << 20
MAX_EXAMPLES = 20  # of records that a manifest names


def merge_corpora(corpora: Sequence[Corpus], prefix: Path) -> dict[str, Any]:
    """Write the documents of all corpora, in order, as a new corpus; returns its manifest."""
    everything = [np.arange(len(corpus)) for corpus in corpora]
    merged = {"merged": [str(corpus.prefix) for corpus in corpora], **_notes_of(corpora)}
    return copy_documents(corpora, everything, prefix, merged)


def _notes_of(corpora: Sequence[Corpus]) -> dict[str, Any]:
    """What was left out or changed on the way into the corpora, added up."""
    manifests = [corpus.manifest for corpus in corpora]
    noted = [manifest["provenance"] for manifest in manifests if "examples" in manifest["provenance"]]
    examples = {
        kind: [text for notes in noted for text in notes["examples"][kind]][:MAX_EXAMPLES]
        for kind in ("broken", "changed")
    }
    counts = {name: sum(notes[name] for notes in noted) for name in ("broken_records", "changed_turns")}
    dropped = sum(manifest["empty_documents_dropped"] for manifest in manifests)
    return {**counts, "examples": examples, "empty_documents_dropped_before": dropped}


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
