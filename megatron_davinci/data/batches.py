"""Which spans of which documents make up each global batch: a function of recipe, corpora and step alone. Torch-free.

Documents are drawn in an order that depends on (seed, stage, epoch); the layout of ranks never enters.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_prep import InputError
from data_prep.corpus import Corpus, LongDocuments, PackPlan, load_plan, pack_documents
from megatron_davinci.recipe import Batch, Recipe, Stage


class Span(NamedTuple):
    """`length` tokens of a document from `start`; documents are numbered over the corpora of a stage, end to end."""

    document: int
    start: int
    length: int


Sequence = list[Span]


def shuffled(count: int, seed: int, stage: int, epoch: int) -> npt.NDArray[np.int64]:
    """A permutation of range(count) that no release of numpy will change: raw Philox draws, sorted."""
    key = np.random.SeedSequence([seed, stage, epoch]).generate_state(2, np.uint64)
    draws = np.random.Philox(key=key).random_raw(count)
    return np.argsort(draws, kind="stable")


class StageBatches:
    """The batches of one stage, over all its epochs. `corpora` has a corpus as often as the blend repeats it."""

    def __init__(self, recipe: Recipe, index: int) -> None:
        stage = recipe.data.stages[index]
        self.name = stage.name
        self.corpora = _open_blend(stage)
        self.lengths = np.concatenate([corpus.lengths for corpus in self.corpora])
        self._first_document = np.cumsum([0] + [len(corpus) for corpus in self.corpora])
        self._order = (recipe.seed, index)
        self._seq_length = recipe.data.seq_length
        self._long_documents: LongDocuments = recipe.data.long_documents
        if self._long_documents == "error":
            self._refuse_long_documents()
        self._plan = None if recipe.batch.unit == "samples" else self._make_plan(stage)
        self._documents = self._drawn_documents()
        self._units_per_epoch = len(self._documents) if self._plan is None else len(self._plan)
        if self._units_per_epoch == 0:
            raise InputError(f"stage {self.name}: every document is longer than data.seq_length and dropped: raise it")
        self._batch_units = _batch_units(recipe.batch, self._seq_length)
        self._total_units = self._units_per_epoch * stage.epochs
        self.num_batches = -(-self._total_units // self._batch_units)
        self._permutation: tuple[int, npt.NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def sequences(self, batch: int) -> list[Sequence]:
        """The packed sequences of one global batch; the last batch of a stage may hold fewer units."""
        start = batch * self._batch_units
        units = self._units(start, min(start + self._batch_units, self._total_units))
        if self._plan is not None:
            return [[Span(*span) for span in self._plan.sequence(unit)] for unit in units]
        documents = self._documents[units]
        packed = pack_documents(self.lengths[documents], self._seq_length, self._long_documents)
        return [
            [Span(int(documents[drawn]), start, length) for drawn, start, length in packed.sequence(index)]
            for index in range(len(packed))
        ]

    def num_labels(self, sequences: list[Sequence]) -> int:
        """Tokens with a next token to predict: the last one of a document has none."""
        return sum(
            span.length - (span.start + span.length == self.lengths[span.document])
            for sequence in sequences
            for span in sequence
        )

    def tokens(self, span: Span) -> npt.NDArray[np.int64]:
        """Ids of a span and, where its document goes on, of the token after it."""
        corpus = int(np.searchsorted(self._first_document, span.document, side="right")) - 1
        document = span.document - int(self._first_document[corpus])
        return self.corpora[corpus].span(document, span.start, span.length + 1)

    def _refuse_long_documents(self) -> None:
        longest = int(self.lengths.argmax())
        if self.lengths[longest] > self._seq_length:
            raise InputError(
                f"stage {self.name}: the longest document has {self.lengths[longest]} tokens, data.seq_length is "
                f"{self._seq_length}: raise it, or set data.long_documents to split or drop"
            )

    @property
    def order(self) -> dict[str, object]:
        """What settles, with seed and batch size, which tokens come when; nothing of the layout of ranks."""
        plan = None if self._plan is None else self._plan.checksum
        return {"corpora": [corpus.checksum for corpus in self.corpora], "units": self._total_units, "plan": plan}

    def _drawn_documents(self) -> npt.NDArray[np.int64]:
        """Documents that a batch of samples can draw: all, or those that are not dropped for their length."""
        if self._long_documents == "drop":
            return np.flatnonzero(self.lengths <= self._seq_length)
        return np.arange(len(self.lengths))

    def _units(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Documents or planned sequences number start to stop of the stage's stream, which runs through all epochs."""
        pieces = []
        while start < stop:
            epoch, offset = divmod(start, self._units_per_epoch)
            taken = min(stop - start, self._units_per_epoch - offset)
            pieces.append(self._epoch_order(epoch)[offset : offset + taken])
            start += taken
        return np.concatenate(pieces)

    def _epoch_order(self, epoch: int) -> npt.NDArray[np.int64]:
        if self._permutation[0] != epoch:
            seed, stage = self._order
            self._permutation = (epoch, shuffled(self._units_per_epoch, seed, stage, epoch))
        return self._permutation[1]

    def _make_plan(self, stage: Stage) -> PackPlan:
        if stage.plan is None:
            return pack_documents(self.lengths, self._seq_length, self._long_documents)
        plan = load_plan(Path(stage.plan), self.corpora)
        if plan.seq_length != self._seq_length:
            raise InputError(
                f"{stage.plan} packs sequences of {plan.seq_length} tokens, data.seq_length is {self._seq_length}: "
                "make both the same"
            )
        if plan.document_alignment != 1:
            raise InputError(
                f"{stage.plan} aligns documents to {plan.document_alignment} tokens, which training does not do yet: "
                "pack without --document-alignment"
            )
        return plan


class GlobalBatches:
    """All stages of a recipe, one after the other."""

    def __init__(self, recipe: Recipe) -> None:
        self.stages = [StageBatches(recipe, index) for index in range(len(recipe.data.stages))]
        self._ends = np.cumsum([0] + [stage.num_batches for stage in self.stages])
        corpora = [corpus for stage in self.stages for corpus in stage.corpora]
        for one, other in pairwise(corpora):
            if one.tokenizer["fingerprint"] != other.tokenizer["fingerprint"]:
                raise InputError(f"{one.prefix} and {other.prefix} were made by different tokenizers: use one for all")
        self.tokenizer = corpora[0].tokenizer

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole recipe."""
        return int(self._ends[-1])

    def at(self, step: int) -> tuple[StageBatches, list[Sequence]]:
        """The stage of a step, and the packed sequences of its global batch."""
        stage = int(np.searchsorted(self._ends, step, side="right")) - 1
        return self.stages[stage], self.stages[stage].sequences(step - int(self._ends[stage]))


def share_of_rank(
    sequences: list[Sequence], rank: int, data_parallel_size: int, micro_batch_size: int
) -> Iterator[list[Sequence]]:
    """The micro-batches of one data-parallel rank; empty sequences fill the count up: every rank gets as many."""
    per_round = data_parallel_size * micro_batch_size
    filled = sequences + [[] for _ in range(-len(sequences) % per_round)]
    for start in range(rank * micro_batch_size, len(filled), per_round):
        yield filled[start : start + micro_batch_size]


def _open_blend(stage: Stage) -> list[Corpus]:
    opened = Corpus.open_all([blend.corpus for blend in stage.blend])
    return [corpus for corpus, blend in zip(opened, stage.blend, strict=True) for _ in range(blend.repeat)]


def _batch_units(batch: Batch, seq_length: int) -> int:
    """Units per global batch: documents for samples, else sequences."""
    return batch.global_size // seq_length if batch.unit == "tokens" else batch.global_size
