"""The documents of several corpora, end to end: lengths, tokens, and which tokens are trained. Torch-free."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data_prep.corpus import Corpus
from data_prep.io.arrays import Bools, Int64s


class Span(NamedTuple):
    """`length` tokens of a document from `start`, in the epoch in which they were drawn."""

    document: int
    start: int
    length: int
    epoch: int

    def parts(self, longest: int) -> "list[Span]":
        """The span in spans of at most `longest` tokens."""
        return [
            self._replace(start=self.start + first, length=min(longest, self.length - first))
            for first in range(0, self.length, longest)
        ]


PackedSequence = list[Span]


class Documents:
    """Document d is number d - first of the corpus it lies in. `lengths` (documents,) in tokens.

    Where `honour_masks`, a token that a corpus's loss mask leaves out is read but never predicted.
    """

    def __init__(self, corpora: Sequence[Corpus], honour_masks: bool) -> None:
        self.corpora = list(corpora)
        self.lengths: Int64s = np.concatenate([corpus.lengths for corpus in corpora])
        self._first = np.cumsum([0] + [len(corpus) for corpus in corpora])
        self._honour_masks = honour_masks
        prefixes = [corpus.prefix.resolve() for corpus in corpora]
        self.prefixes = list(dict.fromkeys(prefixes))
        """Of the corpora, each once, however often a blend repeats it."""
        self._prefix_of = [self.prefixes.index(prefix) for prefix in prefixes]

    def __len__(self) -> int:
        return len(self.lengths)

    def tokens(self, span: Span) -> Int64s:
        """Ids of a span and, where its document goes on, of the token after it."""
        corpus, document = self.place_of(span.document)
        return corpus.span(document, span.start, span.length + 1)

    def predicted(self, span: Span) -> Bools:
        """Which tokens of `tokens(span)[1:]` are labels: all, or those that the loss mask marks."""
        corpus, document = self.place_of(span.document)
        count = min(span.length, int(corpus.lengths[document]) - span.start - 1)
        if corpus.loss_mask is None or not self._honour_masks:
            return np.ones(count, np.bool_)
        first = int(corpus.starts[document]) + span.start + 1
        return np.asarray(corpus.loss_mask[first : first + count] != 0)

    def mark(self, chosen: Sequence[tuple[Corpus, Int64s]]) -> Bools:
        """(documents,): True for the given documents of the given corpora, in every copy that the blend repeats."""
        marks = np.zeros(len(self), np.bool_)
        for first, corpus in zip(self._first, self.corpora, strict=False):
            for other, documents in chosen:
                if corpus.prefix.resolve() == other.prefix.resolve():
                    marks[first + documents] = True
        return marks

    def place_of(self, document: int) -> tuple[Corpus, int]:
        """The corpus in which a document lies, and the document's number in it."""
        corpus = self._copy_of(document)
        return self.corpora[corpus], document - int(self._first[corpus])

    def prefix_index(self, document: int) -> int:
        """Which of `prefixes` a document's corpus has."""
        return self._prefix_of[self._copy_of(document)]

    def copies_of(self, documents: Int64s) -> Int64s:
        """(documents,): in which of `corpora` each lies."""
        return np.searchsorted(self._first, documents, side="right") - 1

    def _copy_of(self, document: int) -> int:
        return int(np.searchsorted(self._first, document, side="right")) - 1
