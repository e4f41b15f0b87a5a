"""What an objective needs beside its corpora, opened and checked before a process group is up. Torch-free."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from xxhash import xxh3_64

from data_prep import InputError
from data_prep.io.registry import import_path
from data_prep.tokenizers import is_tokenizer_of, load_tokenizer, tokenizer_file
from megatron_davinci.config import Recipe
from megatron_davinci.data.batches import RunBatches
from megatron_davinci.data.documents import Documents, Span
from megatron_davinci.models.config import ModelConfig

_GIVEN, _TRUTH = 128, 64  # tokens of a document that are given to go on from, and shown as what is true


@dataclass(frozen=True)
class SamplePrompt:
    """A prompt that is answered at every checkpoint: its `ids` and, for people, `where` it is from, the end of the text
    `before` the answer, and the `truth`, None where nobody knows it."""

    where: str
    ids: Sequence[int]
    before: str
    truth: str | None


class ObjectiveInputs:
    """The inputs of one stage's objective. This class needs nothing but the corpora; others extend it.

    `index` is the stage's number in the recipe, and `first_step` the optimizer step of the run that it starts with.
    """

    answer_end: Any = None
    """Where the objective's responses end by themselves: a `rl.answers.AnswerEnd`."""

    def __init__(self, recipe: Recipe, batches: RunBatches, index: int, model: ModelConfig) -> None:
        self.recipe, self.batches, self.index, self.model = recipe, batches, index, model
        self.stage = batches.stages[index]
        self.first_step = batches.first_step(index)
        self.fingerprint = fingerprint_of(self.stage.recipe.objective.model_dump())
        """Identity of what is trained on besides the corpora: a run resumes only where it is the same."""

    def doubts(self) -> list[str]:
        """What the owner of a run should know of its inputs: one sentence each."""
        return []

    def first_missing(self, step: int, end: int) -> int:
        """The first optimizer step from `step` on that cannot be trained yet for want of inputs; `end` for none."""
        return end

    def missing(self, step: int) -> str:
        """What an optimizer step lacks, and how to get it: a sentence."""
        raise NotImplementedError

    def prompt_lines(self, step: int) -> Iterator[dict[str, Any]] | None:
        """What an optimizer step needs answered, as lines of a file, a header first; None where it needs nothing."""
        return None

    def answer_file(self, step: int) -> Path | None:
        """The file that answers `prompt_lines` of a step."""
        return None

    def sample_prompts(self, count: int) -> list[SamplePrompt]:
        """Beginnings of `count` documents, or of as many as there are, the same at every call; held out ones where the
        recipe holds any out. Raises InputError where no tokenizer can show the answers."""
        decode = load_tokenizer(tokenizer_file(self.find_tokenizer()))[0].decode
        found = []
        for name, documents, document in self._sampled_documents()[:count]:
            length = int(documents.lengths[document])
            given = max(1, min(_GIVEN, length // 2))
            ids = documents.tokens(Span(document, 0, min(length, given + _TRUTH), 0)).tolist()
            where = f"document {documents.place_of(document)[1]} of {name}"
            found.append(SamplePrompt(where, ids[:given], decode(ids[:given]), decode(ids[given : given + _TRUTH])))
        return found

    def find_tokenizer(self) -> Path:
        """The directory of the tokenizer that made the corpora's ids. Raises InputError."""
        found = self.recipe.find_tokenizer()
        where = f"stage {self.stage.name}: objective {self.stage.recipe.objective.kind}"
        if found is None:
            raise InputError(f"{where} shows or reads text: set tokenizer to the directory of the model's tokenizer")
        if not is_tokenizer_of(found, self.batches.tokenizer):
            raise InputError(
                f"{where} shows or reads text with {found}, but another file made the corpora's ids: tokenize them "
                f"with --tokenizer {found}"
            )
        return found

    def _sampled_documents(self) -> list[tuple[str, Documents, int]]:
        """(corpus, documents, document), the corpora taking turns where documents are held out."""
        if self.recipe.evaluation is None:
            stage = self.stage
            drawn = dict.fromkeys(span.document for unit in stage.units(0) for span in unit)
            names = (stage.corpus_names[stage.documents.prefix_index(document)] for document in drawn)
            return [(name, stage.documents, document) for name, document in zip(names, drawn, strict=True)]
        sources = [
            [(name, documents, document) for document in dict.fromkeys(s.document for each in packed for s in each)]
            for name, documents, packed in self.batches.held_out.sources(self.recipe, self.index)
        ]
        turns = zip_longest(*sources)
        return [entry for turn in turns for entry in turn if entry is not None]

    def start(self, trainer: Any) -> Any:
        """The objective (`core.objective.Objective`) that trains with a `core.step.Trainer`. Imports torch."""
        return import_path(self.stage.recipe.objective.objective_class)(self, trainer)


def fingerprint_of(*parts: Any) -> str:
    """xxh3 of what an objective depends on; nothing for next-token prediction, which has no options."""
    return "" if parts == ({"kind": "ntp"},) else xxh3_64(repr(parts).encode()).hexdigest()


def open_inputs(recipe: Recipe, batches: RunBatches, index: int, model: ModelConfig) -> Any:
    """The inputs of a stage's objective, of the class that its options name. Raises InputError for what is missing."""
    return import_path(batches.stages[index].recipe.objective.inputs_class)(recipe, batches, index, model)
