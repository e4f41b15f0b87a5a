"""What each rank runs in the tests of the reference model: log-probabilities of made-up responses to made-up texts."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from megatron_davinci.config import parse_recipe
from megatron_davinci.core.groups import model_parallel, world
from megatron_davinci.data.documents import Span
from megatron_davinci.models.config import load_model_config
from megatron_davinci.rl.engines.reference import Reference
from megatron_davinci.rl.prompt_source import DocumentPrompts
from megatron_davinci.rl.rollout_files import Group, PromptSpec, Response

Case = tuple[list[int], list[int], list[list[float]]]  # prompt, response; log-probabilities are filled in


def prompt_source(preamble: list[int]) -> Any:
    return SimpleNamespace(preamble=preamble, instruction=lambda budget: [5, 6, 7, budget][: budget + 1])


def questions(vocab_size: int) -> tuple[list[DocumentPrompts], list[Group]]:
    """Four documents, one of which nothing is asked about; three questions each, at the end too; empty responses."""
    draws = np.random.default_rng(0)
    asked, groups = [], []
    for document in range(4):
        ids = draws.integers(1, vocab_size, 20 + document)
        places = [] if document == 2 else sorted(draws.choice(np.arange(1, len(ids)), 2, replace=False).tolist())
        places += [len(ids)] if places else []
        specs = [PromptSpec(document, 0, place, 0, number % 3, "") for number, place in enumerate(places)]
        asked.append(DocumentPrompts(Span(document, 0, len(ids), 0), ids, specs, 0, 0))
        for spec in specs:
            lengths = draws.integers(0, 7, 4).tolist()
            tokens = [draws.integers(1, vocab_size, length).tolist() for length in lengths]
            groups.append(Group(spec, [Response(each, [0.0] * len(each), True) for each in tokens]))
    return asked, groups


def scored(recipes: list[dict[str, Any]], preamble: list[int]) -> list[list[Group]]:
    """Per recipe, the same questions and responses with the reference's log-probabilities."""
    found = []
    with world():
        for values in recipes:
            recipe = parse_recipe(values)
            stage, model = recipe.stage(0), load_model_config(recipe.model)
            with model_parallel(stage, recipe.seed) as device:
                reference = Reference.of(recipe, stage, stage.objective, model, device)
                found.append(reference.score(prompt_source(preamble), *questions(model.vocab_size)))
    return found
