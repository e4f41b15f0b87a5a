"""Which spans of which documents make up each global batch: a function of recipe, corpora and step alone. Torch-free.

Documents are drawn in an order that depends on (seed, stage, epoch); the layout of ranks never enters. Which rank
trains them, and in which rows, is for `data.rows`.
"""

from pathlib import Path

import numpy as np
from xxhash import xxh3_64

from data_prep import InputError
from data_prep.corpus import Corpus, LongDocuments, PackPlan, joined_plans, load_plan, pack_documents, save_plan
from data_prep.io.arrays import Bools, Int64s
from megatron_davinci.config import Batch, Recipe
from megatron_davinci.data.documents import Documents, PackedSequence, Span
from megatron_davinci.data.held_out import HeldOut, recipe_corpora
from megatron_davinci.data.ledger import Tally
from megatron_davinci.data.rows import RowRules
from megatron_davinci.data.streams import EqualStream, Length, Stream, WeightedStream
from megatron_davinci.models.alignment import Alignment
from megatron_davinci.models.config import load_model_config


class StageBatches:
    """The batches of one stage, over all its epochs; a corpus is drawn as often as the blend repeats it."""

    def __init__(self, recipe: Recipe, index: int, held_out: HeldOut) -> None:
        self.recipe = stage = recipe.stage(index)
        self.name = stage.name
        opened = Corpus.open_all([blend.corpus for blend in stage.blend])
        repeats = [blend.repeat for blend in stage.blend]
        corpora = [corpus for corpus, times in zip(opened, repeats, strict=True) for _ in range(times)]
        self.documents = Documents(corpora, stage.loss_mask)
        names = recipe_corpora(recipe)
        self.corpus_names = [names[prefix] for prefix in self.documents.prefixes]
        # By its name: a stage that is put before it, or taken away, does not change what is drawn.
        self.key = (recipe.seed, xxh3_64(stage.name.encode()).intdigest())
        self._long_documents: LongDocuments = stage.long_documents
        if stage.plan is not None:
            self.plan: PackPlan | None = self._load_plan(Path(stage.plan))
            self._drawn = np.unique(self.plan.document)
        else:
            self._drawn = self._drawable(held_out.mark(self.documents))
            self._kept_plan = Path(recipe.checkpoint.dir) / f"plan-{index}-{self._rules()}.safetensors"
            self.plan = None if stage.batch.unit == "samples" else self._keep_or_make_plan()
        if not (len(self._drawn) if self.plan is None else len(self.plan)):
            raise InputError(
                f"stage {self.name} has no documents: all are held out, or longer than its seq_length and dropped"
            )
        self.rules = RowRules.of(stage, load_model_config(recipe.model), self.alignment)
        self._stream = self._make_stream([blend.weight for blend in stage.blend if blend.weight is not None])
        self.num_batches = self._stream.num_batches

    def units(self, batch: int) -> list[PackedSequence]:
        """What one global batch holds, each to lie in one row: sequences of the plan, or documents, long ones in parts.

        The last batch of a stage may hold less.
        """
        if self.plan is None:
            return [[part] for span in self.drawn(batch) for part in span.parts(self.recipe.seq_length)]
        units, epochs = self._units_of(batch)
        pairs = zip(units.tolist(), epochs.tolist(), strict=True)
        return [[Span(*span, epoch) for span in self.plan.sequence(unit)] for unit, epoch in pairs]

    def drawn(self, batch: int) -> list[Span]:
        """The documents of one global batch of samples, whole, in the order in which they are drawn."""
        units, epochs = self._units_of(batch)
        documents = self._drawn[units].tolist()
        lengths = self.documents.lengths[documents].tolist()
        return [Span(d, 0, length, epoch) for d, length, epoch in zip(documents, lengths, epochs.tolist(), strict=True)]

    @property
    def longest(self) -> int:
        """Tokens of the longest document that the stage draws."""
        return int(self.documents.lengths[self._drawn].max())

    def epochs_finished_by(self, batch: int) -> range:
        """The epochs whose last unit lies in this batch."""
        return self._stream.epochs_finished_by(*self._stream.of_batch(batch))

    def name_document(self, document: int) -> tuple[str, int]:
        """The name of the corpus in which a document lies, and the document's number in it."""
        name = self.corpus_names[self.documents.prefix_index(document)]
        return name, self.documents.place_of(document)[1]

    def epochs_after(self, batch: int) -> float:
        """How many times the blend has been seen after a batch."""
        return self._stream.epochs_after(self._stream.of_batch(batch)[1])

    def epochs_of_each(self) -> dict[str, float]:
        """How many times each corpus of a blend by weight is seen; nothing of another blend."""
        return dict(zip(self.corpus_names, self._stream.epochs_of_each, strict=False))

    @property
    def num_tokens(self) -> int:
        """Tokens of documents in the whole stage."""
        return self._stream.tokens_after(self._stream.total)

    @property
    def epochs(self) -> float:
        """How many times the blend is seen; of one by weight, how many times its tokens."""
        return self._stream.epochs_after(self._stream.total)

    def tally_of_an_epoch(self) -> Tally:
        """What the ledger must show when an epoch is over: each document that is drawn, whole and once."""
        return self._tally_of(self._drawn)

    @property
    def alignment(self) -> int:
        """Each span takes room up to a multiple of this many tokens."""
        return self.recipe.document_alignment if self.plan is None else self.plan.document_alignment

    def alignment_waste(self) -> float:
        """Share of the room of an epoch's documents that is padding up to `alignment`."""
        return Alignment(self.alignment, self.alignment).waste(self.documents.lengths[self._drawn])

    @property
    def order(self) -> dict[str, object]:
        """What determines, with the seed, which tokens come when; nothing of the layout of ranks."""
        return {
            "name": self.name,
            "corpora": [corpus.checksum for corpus in self.documents.corpora],
            **self._stream.facts,
            "batch": (self.recipe.batch.unit, self._stream.length.batch),
            "seq_length": self.recipe.seq_length,
            "long_documents": self._long_documents,
            "loss_mask": self.recipe.loss_mask,
            "plan": None if self.plan is None else self.plan.checksum,
            "drawn": xxh3_64(self._drawn.tobytes()).hexdigest(),
        }

    def keep_plan(self) -> None:
        """Save a plan that was made on start beside the run: later processes may need another alignment."""
        if self.plan is not None and self.recipe.plan is None and not self._kept_plan.exists():
            save_plan(self.plan, self.documents.corpora, self._kept_plan)

    def _tally_of(self, documents: Int64s) -> Tally:
        lengths = self.documents.lengths
        return Tally.of_spans(documents, np.zeros_like(documents), lengths[documents], lengths)

    def _rules(self) -> str:
        """What a plan is made by, but for its alignment."""
        rules = (self.recipe.seq_length, self._long_documents, *(["by corpus"] if self._is_weighted else []))
        return xxh3_64(repr(rules).encode() + self._drawn.tobytes()).hexdigest()

    @property
    def _is_weighted(self) -> bool:
        return self.recipe.blend[0].weight is not None

    def _drawable(self, held_out: Bools) -> Int64s:
        """Documents that this stage can draw: neither held out nor dropped for their length."""
        lengths = self.documents.lengths
        too_long = lengths > self.recipe.seq_length
        if self._long_documents == "error" and too_long.any():
            raise InputError(
                f"stage {self.name}: the longest document has {lengths.max()} tokens, its seq_length is "
                f"{self.recipe.seq_length}: raise it, or set long_documents to split or drop"
            )
        return np.flatnonzero(~held_out & ~(too_long & (self._long_documents == "drop")))

    def _units_of(self, batch: int) -> tuple[Int64s, Int64s]:
        """Documents or planned sequences of a step, and their epochs."""
        return self._stream.at(*self._stream.of_batch(batch))

    def _make_stream(self, weights: list[float]) -> Stream:
        stage = self.recipe
        size = _batch_units(stage.batch, stage.seq_length)
        length = Length(size, stage.epochs, stage.train_iters, stage.train_tokens)
        first = self._drawn if self.plan is None else self.plan.document[self.plan.sequence_offsets[:-1]]
        tokens = self.documents.lengths[self._drawn] if self.plan is None else self.plan.tokens_of_each
        if not weights:
            return EqualStream(tokens, length, self.key)
        corpora = self.documents.copies_of(first)
        for number, name in enumerate(self.corpus_names):
            if not tokens[corpora == number].any():
                raise InputError(
                    f"stage {self.name} has no documents of {name}, which has a weight in its blend: all are held out, "
                    "or longer than its seq_length and dropped"
                )
        return WeightedStream(tokens, corpora, weights, length, self.key)

    def _keep_or_make_plan(self) -> PackPlan:
        """The plan that an earlier start of this run has made by the same rules, or a new one."""
        if self._kept_plan.exists():
            return self._load_plan(self._kept_plan)
        lengths = np.zeros_like(self.documents.lengths)  # what has no length takes no room
        lengths[self._drawn] = self.documents.lengths[self._drawn]
        stage = self.recipe
        groups = self.documents.copies_of(np.arange(len(lengths))) if self._is_weighted else np.zeros_like(lengths)
        return joined_plans(
            pack_documents(
                np.where(groups == group, lengths, 0), stage.seq_length, self._long_documents, stage.document_alignment
            )
            for group in np.unique(groups)
        )

    def _load_plan(self, path: Path) -> PackPlan:
        stage, plan = self.recipe, load_plan(path, self.documents.corpora)
        if plan.seq_length != stage.seq_length:
            raise InputError(
                f"{path} packs sequences of {plan.seq_length} tokens, stage {stage.name} has a seq_length of "
                f"{stage.seq_length}: make both the same"
            )
        if plan.document_alignment % stage.document_alignment:
            raise InputError(
                f"{path} gives documents room up to a multiple of {plan.document_alignment} tokens; "
                f"context_parallel_size {stage.layout.context} needs {stage.document_alignment}: go on without, "
                f"or begin with a plan that was packed with --document-alignment {stage.document_alignment}"
            )
        planned = Tally.of_spans(plan.document, plan.start, plan.length, self.documents.lengths)
        if planned != self._tally_of(np.unique(plan.document)):
            raise InputError(f"{path} takes a document in part, or twice: make it again with davinci data pack")
        return plan


class RunBatches:
    """All stages of a recipe, one after the other."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        count = len(recipe.data.stages)
        self.held_out = HeldOut(recipe)
        self.stages = [StageBatches(recipe, index, self.held_out) for index in range(count)]
        self._ends = np.cumsum([0] + [stage.num_batches for stage in self.stages])
        corpora = [corpus for stage in self.stages for corpus in stage.documents.corpora]
        self.tokenizer = corpora[0].tokenizer
        for other in corpora[1:]:
            if other.tokenizer["fingerprint"] != self.tokenizer["fingerprint"]:
                raise InputError(
                    f"{corpora[0].prefix} and {other.prefix} were made by different tokenizers: use one for all"
                )

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole recipe."""
        return int(self._ends[-1])

    def first_step(self, stage: int) -> int:
        """The step with which a stage begins; for the number of stages, that of the end."""
        return int(self._ends[stage])

    def stage_of(self, step: int) -> int:
        """The stage that a step belongs to."""
        return int(np.searchsorted(self._ends, step, side="right")) - 1

    def at(self, step: int) -> tuple[int, int]:
        """The number of a step's stage, and that of its global batch in the stage."""
        stage = self.stage_of(step)
        return stage, step - self.first_step(stage)


def _batch_units(batch: Batch, seq_length: int) -> int:
    """Units per global batch: documents for samples, else sequences."""
    return batch.global_batch_size // seq_length if batch.unit == "tokens" else batch.global_batch_size
