"""What a stage asks at each of its steps: positions by the curriculum, prompts with the step's budget. Torch-free.

All of it is a function of recipe, corpora and step: whoever resumes asks the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data_prep import InputError
from data_prep.corpus import Annotation, Corpus
from megatron_davinci.data.batches import StageBatches
from megatron_davinci.data.documents import Int64s, Span
from megatron_davinci.rmt.curriculum import difficulty_mix, token_budget
from megatron_davinci.rmt.difficulty import NONE, candidate_levels, draw_positions, levels_of, quantile_thresholds
from megatron_davinci.rmt.options import Rmt
from megatron_davinci.rmt.prompts import load_prompt
from megatron_davinci.rmt.token_texts import TokenTexts
from megatron_davinci.rollout.records import Ask, prompt_hash


@dataclass(frozen=True)
class DocumentAsks:
    """One document of a global batch and what is asked about it; `ids` (tokens,).

    `empty_levels`: how often the curriculum wanted a level that the document does not have; `unboxable`: positions that
    were hard enough but whose token no answer can name.
    """

    span: Span
    ids: Int64s
    asks: Sequence[Ask]
    empty_levels: int
    unboxable: int


class Asker:
    """The asks of one stage. Raises InputError where a corpus is not annotated, or not as the recipe says."""

    def __init__(self, stage: StageBatches, options: Rmt, texts: TokenTexts) -> None:
        self._stage, self.options, self._texts = stage, options, texts
        # once for each corpus, however often the blend repeats it
        self._annotations = {corpus.prefix: self._open(corpus) for corpus in stage.documents.corpora}
        self._prompt = load_prompt(options.template, texts.encode)
        self.preamble = self._prompt.preamble_ids()
        self.instruction = lru_cache(maxsize=2)(self._prompt.instruction_ids)  # the same for all asks of a step
        self._thresholds = self._find_thresholds()
        self._answerable = texts.answerable
        if options.reward.match == "strip_casefold":  # which takes no white space for an answer
            self._answerable = texts.answerable & np.array([bool(text.strip()) for text in texts.texts])

    @property
    def annotations(self) -> list[list[str]]:
        """Checksums of the entropies that the positions hang on."""
        return [annotation.description["checksum"] for annotation in self._annotations.values()]

    def budget(self, batch: int) -> int:
        """B_t (Eq. 1) of a step of the stage."""
        budget = self.options.budget
        return token_budget(batch, self._stage.num_batches, budget.first, budget.gamma, budget.least)

    def longest_prompt(self) -> int:
        """No prompt of this stage has more tokens than this and the document."""
        steps = range(self._stage.num_batches)
        budgets = {self.budget(step) for step in steps}
        return len(self.preamble) + max(len(self._prompt.instruction_ids(budget)) for budget in budgets)

    def asks(self, batch: int) -> list[DocumentAsks]:
        """What is asked at one step, document by document, in the order in which they are drawn."""
        curriculum, steps = self.options.curriculum, self._stage.num_batches
        mix = difficulty_mix(batch, steps, curriculum.early, curriculum.late, curriculum.begins, curriculum.ends)
        budget = self.budget(batch)
        return [self._about(span, mix, budget) for span in self._stage.drawn(batch)]

    def prompt(self, ids: Sequence[int], position: int, budget: int) -> list[int]:
        """A prompt's ids: preamble, the document up to the position, instruction."""
        return [*self.preamble, *ids[:position], *self.instruction(budget)]

    def _about(self, span: Span, mix: tuple[float, float, float], budget: int) -> DocumentAsks:
        ids = self._stage.documents.tokens(span)
        corpus, document = self._stage.documents.place_of(span.document)
        levels = levels_of(self._annotations[corpus.prefix].of(document), self._thresholds)
        key = (*self._stage.key, span.epoch, span.document)
        asked = self._answerable[ids]
        asked[1:] &= self._stage.documents.predicted(
            span
        )  # what the loss mask leaves out is not learnt this way either
        drawn = draw_positions(candidate_levels(levels, asked), mix, self.options.positions, key)
        tokens = ids.tolist()
        asks = [
            Ask(span.document, span.epoch, position, level, budget, prompt_hash(self.prompt(tokens, position, budget)))
            for position, level in zip(drawn.positions, drawn.levels, strict=True)
        ]
        unboxable = int(((levels != NONE) & ~self._texts.boxable[ids]).sum())
        return DocumentAsks(span, ids, asks, drawn.empty_levels, unboxable)

    def _open(self, corpus: Corpus) -> Annotation:
        annotation, wanted = Annotation(corpus), self.options.difficulty.entropy
        if annotation.description["entropy"] != wanted:
            raise InputError(
                f"{corpus.prefix} is annotated with entropies of kind {annotation.description['entropy']}, "
                f"objective.difficulty.entropy is {wanted}: set it so, or annotate again with --entropy {wanted}"
            )
        return annotation

    def _find_thresholds(self) -> tuple[float, float, float]:
        difficulty = self.options.difficulty
        if difficulty.quantiles is None:
            return difficulty.thresholds
        entropies = np.concatenate([annotation.entropies for annotation in self._annotations.values()])
        return quantile_thresholds(entropies, difficulty.quantiles)
