"""Documents that are never trained on, by corpus: what each source's evaluation loss is measured on. Torch-free."""

from pathlib import Path

import numpy as np
from xxhash import xxh3_64

from data_prep import InputError
from data_prep.corpus import Corpus
from data_prep.io.arrays import Bools, Int64s
from data_prep.io.files import shortest_names
from megatron_davinci.config import Recipe, StageRecipe
from megatron_davinci.data.documents import Documents, PackedSequence, Span


class HeldOut:
    """evaluation.held_out_documents documents of every corpus, chosen by the seed and the corpus's contents."""

    def __init__(self, recipe: Recipe) -> None:
        self._chosen: dict[Path, tuple[Corpus, Int64s]] = {}
        self._names = recipe_corpora(recipe)
        if recipe.evaluation is None:
            return
        for key, stages in _stages_by_corpus(recipe).items():
            corpus = Corpus(key)
            self._chosen[key] = (corpus, _choose(corpus, recipe, stages))

    def mark(self, documents: Documents) -> Bools:
        """(documents,): True for what is held out."""
        return documents.mark(list(self._chosen.values()))

    def sources(self, recipe: Recipe, stage: int) -> list[tuple[str, Documents, list[PackedSequence]]]:
        """(name, documents, units) of each corpus of one stage: documents, long ones in parts."""
        resolved = recipe.stage(stage)
        found = []
        for key in dict.fromkeys(Path(blend.corpus).resolve() for blend in resolved.blend):
            corpus, chosen = self._chosen[key]
            documents = Documents([corpus], resolved.loss_mask)
            spans = (Span(number, 0, int(corpus.lengths[number]), 0) for number in chosen.tolist())
            units = [[part] for span in spans for part in span.parts(resolved.seq_length)]
            found.append((self._names[key], documents, units))
        return found


def recipe_corpora(recipe: Recipe) -> dict[Path, str]:
    """The name of every corpus of a recipe, by its resolved prefix: the same in all that is reported."""
    return shortest_names(Path(blend.corpus) for stage in recipe.data.stages for blend in stage.blend)


def _stages_by_corpus(recipe: Recipe) -> dict[Path, list[StageRecipe]]:
    found: dict[Path, list[StageRecipe]] = {}
    for stage in map(recipe.stage, range(len(recipe.data.stages))):
        for key in dict.fromkeys(Path(blend.corpus).resolve() for blend in stage.blend):
            found.setdefault(key, []).append(stage)
    return found


def _choose(corpus: Corpus, recipe: Recipe, stages: list[StageRecipe]) -> Int64s:
    """Documents with something to predict and, where long ones are dropped, short enough for all its stages."""
    assert recipe.evaluation is not None
    longest = min(
        [stage.seq_length for stage in stages if stage.long_documents == "drop"], default=corpus.lengths.max()
    )
    fits = (corpus.lengths > 1) & (corpus.lengths <= longest)
    candidates, count = np.flatnonzero(fits), recipe.evaluation.held_out_documents
    if count >= len(candidates):
        raise InputError(
            f"evaluation.held_out_documents is {count}, but {corpus.prefix} has {len(candidates)} documents to choose "
            "from: hold out fewer"
        )
    key = xxh3_64(corpus.checksum.encode(), seed=recipe.seed).intdigest()
    draws = np.random.Philox(key=key).random_raw(len(candidates))
    return np.sort(candidates[np.argsort(draws, kind="stable")[:count]])
