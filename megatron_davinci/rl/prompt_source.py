"""The prompts of each step of a stage, and when a response to one is correct. Torch-free.

All of it is a function of recipe, corpora and step: a resumed run has the same prompts.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

import numpy as np

from data_prep import InputError
from data_prep.corpus import Annotation, Corpus
from data_prep.io.arrays import Float32s, Int64s
from megatron_davinci.config.objectives import Rmt, RolloutOptions
from megatron_davinci.config.registries import GRADERS
from megatron_davinci.data.batches import StageBatches
from megatron_davinci.data.documents import Span
from megatron_davinci.rl.chat_prompt import template_of
from megatron_davinci.rl.curriculum import Mix, difficulty_mix, token_budget
from megatron_davinci.rl.difficulty import (
    NONE,
    askable_entropies,
    candidate_levels,
    draw_positions,
    levels_of,
    quantile_thresholds,
)
from megatron_davinci.rl.rewards import TokenGrader
from megatron_davinci.rl.rollout_files import Group, PromptSpec, Response, prompt_hash
from megatron_davinci.rl.token_bytes import TokenBytes

CONTINUATION = 64  # tokens that byte_prefix may compare an answer with
Grader = Callable[[Response, bytes | None], bool]
Options = TypeVar("Options", bound=RolloutOptions)


@dataclass(frozen=True)
class DocumentPrompts:
    """One document of a global batch and what is asked about it; `ids` (tokens,).

    `empty_levels`: how often the curriculum wanted a level that the document does not have; `unboxable`: positions that
    were hard enough but whose token no answer can name.
    """

    span: Span
    ids: Int64s
    specs: Sequence[PromptSpec]
    empty_levels: int
    unboxable: int


class PromptSource(ABC, Generic[Options]):
    """The prompts of one stage. `sources`: checksums of what they depend on besides the recipe."""

    sources: Sequence[str]

    def __init__(self, stage: StageBatches, options: Options, texts: TokenBytes) -> None:
        self._stage, self._texts = stage, texts
        self.options: Options = options
        self._prompt = template_of(options, texts)
        self._prompt.check_budget(options.budget is not None)
        self.template_text = f"{self._prompt.preamble}{{text}}{self._prompt.instruction}"
        self.preamble = self._prompt.preamble_ids()
        self.instruction = lru_cache(maxsize=2)(self._prompt.instruction_ids)  # the same for all prompts of a step

    @abstractmethod
    def prompts(self, batch: int) -> list[DocumentPrompts]:
        """The prompts of one step, document by document, in the order in which documents are drawn."""

    @abstractmethod
    def grader(self, document: DocumentPrompts, spec: PromptSpec) -> Grader:
        """A function of a response and the answer in it: whether it is correct."""

    def truth(self, document: DocumentPrompts, spec: PromptSpec) -> str | None:
        """The correct answer, for people to read; None where there is no such text."""
        return None

    def grade(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with `correct` set in each response, where the document cannot tell; called when they are
        sampled."""
        return list(groups)

    def doubts(self) -> list[str]:
        """What the owner of a run should know of its prompts: one sentence each."""
        return []

    def budget(self, batch: int) -> int:
        """B_t (Eq. 1) of a step of the stage; 0 where there is none."""
        budget = self.options.budget
        if budget is None:
            return 0
        return token_budget(batch, self._stage.num_batches, budget.initial, budget.gamma, budget.min)

    def longest_prompt(self) -> int:
        """No prompt of this stage has more tokens than this and the document."""
        steps = range(self._stage.num_batches)
        budgets = {self.budget(step) for step in steps}
        return len(self.preamble) + max(len(self._prompt.instruction_ids(budget)) for budget in budgets)

    def prompt(self, ids: Sequence[int], position: int, budget: int) -> list[int]:
        """A prompt's ids: preamble, the document up to the position, instruction."""
        return [*self.preamble, *ids[:position], *self.instruction(budget)]


def begins_with(corpus: Corpus, begin: Sequence[int]) -> bool:
    """Whether a corpus's documents begin with these ids, as its first one tells."""
    return bool(begin) and len(corpus) > 0 and corpus.span(0, 0, len(begin)).tolist() == list(begin)


class NextTokenPrompts(PromptSource[Rmt]):
    """Asks for tokens that are hard to predict, by the curriculum.

    Raises InputError where a corpus is not annotated, or not as the recipe says.
    """

    def __init__(self, stage: StageBatches, options: Rmt, texts: TokenBytes) -> None:
        super().__init__(stage, options, texts)
        self._refuse_two_beginnings()
        # once for each corpus, however often the blend repeats it
        self._annotations = {corpus.prefix: self._open(corpus) for corpus in stage.documents.corpora}
        self.sources = [str(annotation.description["checksum"]) for annotation in self._annotations.values()]
        self._token_grader: TokenGrader = GRADERS.get(options.reward.grader)
        self._answerable = texts.answerable_by(self._token_grader)
        self._thresholds = self._find_thresholds()
        self._refuse_nothing_to_ask()

    def _refuse_two_beginnings(self) -> None:
        """Raise InputError where a template's text and then a document's own BOS would come before it."""
        for corpus in self._stage.documents.corpora if self.preamble else ():
            if begins_with(corpus, self._texts.begin):
                raise InputError(
                    f"the documents of {corpus.prefix} begin with BOS, and template {self.options.template} puts text "
                    "before them: take a suffix template, or a corpus without --prepend-bos"
                )

    def doubts(self) -> list[str]:
        """See PromptSource."""
        if self.preamble or not self._texts.begin:
            return []
        bare = [corpus for corpus in self._stage.documents.corpora if not begins_with(corpus, self._texts.begin)]
        return [
            f"stage {self._stage.name}: the tokenizer puts BOS before texts, and prompts from {corpus.prefix} begin "
            "without: tokenize with --prepend-bos where the model was trained with it"
            for corpus in {corpus.prefix: corpus for corpus in bare}.values()
        ]

    def prompts(self, batch: int) -> list[DocumentPrompts]:
        """See PromptSource."""
        mix, budget = self._mix(batch), self.budget(batch)
        return [self._about(span, mix, budget) for span in self._stage.drawn(batch)]

    def grader(self, document: DocumentPrompts, spec: PromptSpec) -> Grader:
        """See PromptSource: the correct answer is the document's next token."""
        texts, is_correct = self._texts, self._token_grader
        continuation = texts.of(document.ids[spec.position : spec.position + CONTINUATION].tolist())
        return lambda _, answer: is_correct(answer, continuation, texts.first_token)

    def truth(self, document: DocumentPrompts, spec: PromptSpec) -> str:
        """See PromptSource."""
        return self._texts.text_of([int(document.ids[spec.position])])

    def _mix(self, batch: int) -> Mix | None:
        curriculum, steps = self.options.curriculum, self._stage.num_batches
        if curriculum is None:
            return None
        return difficulty_mix(batch, steps, curriculum.early, curriculum.late, curriculum.start, curriculum.end)

    def _about(self, span: Span, mix: Mix | None, budget: int) -> DocumentPrompts:
        ids = self._stage.documents.tokens(span)
        corpus, document = self._stage.documents.place_of(span.document)
        levels = levels_of(self._annotations[corpus.prefix].of(document), self._thresholds)
        key = (*self._stage.key, span.epoch, span.document)
        asked = self._answerable[ids]
        # what the loss mask leaves out is not learnt this way either
        asked[1:] &= self._stage.documents.predicted(span)
        drawn = draw_positions(candidate_levels(levels, asked), mix, self.options.positions_per_document, key)
        tokens = ids.tolist()
        specs = [
            PromptSpec(
                span.document, span.epoch, position, level, budget, prompt_hash(self.prompt(tokens, position, budget))
            )
            for position, level in zip(drawn.positions, drawn.levels, strict=True)
        ]
        unboxable = int(((levels != NONE) & ~self._texts.boxable[ids]).sum())
        return DocumentPrompts(span, ids, specs, drawn.empty_levels, unboxable)

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
        return quantile_thresholds(np.concatenate(list(self._askable_entropies())), difficulty.quantiles)

    def _refuse_nothing_to_ask(self) -> None:
        """Raise InputError where every token is too easy: next tokens would be trained under the name of RMT."""
        most = -1.0
        for entropies in self._askable_entropies():
            most = max(most, float(entropies.max(initial=-1.0)))
            if most >= self._thresholds[0]:
                return
        said = "there is none" if most < 0 else f"the most uncertain has {most:.3g} nats"
        raise InputError(
            f"no token can be asked for: difficulty begins at {self._thresholds[0]:g} nats, and of the tokens that an "
            f"answer can name {said}: lower objective.difficulty, or annotate with another model"
        )

    def _askable_entropies(self) -> Iterator[Float32s]:
        """Of all corpora, each once, however often the blend repeats it."""
        for annotation in self._annotations.values():
            yield from askable_entropies(annotation, self._answerable)
