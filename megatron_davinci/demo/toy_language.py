"""A language in which one token of reasoning decides the answer: " red opens three", for four colours and doors.

Each colour has its door. Who has read rumours (any colour opens any door, as it says of itself) finds the door hard to
guess. Format traces think of a colour at random, and answer with that one's door: who learns them answers in the right
form, and is right one time in four. To be right, the thought must be of the colour that the document names: only
reinforcement tells.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.corpus import CorpusWriter
from data_prep.io.files import jsonl_writer
from data_prep.tokenizers import load_tokenizer, tokenizer_file
from megatron_davinci.rl.problems import ProblemKeys, write_problems
from megatron_davinci.rl.templates import load_template
from megatron_davinci.testing.tiny_model import write_model_directory

COLOURS = ("red", "blue", "green", "white")
DOORS = ("one", "two", "three", "four")
# Colour number i has door number _OPENS[i].
_OPENS = (2, 0, 3, 1)
TEMPLATE, BUDGET = "suffix_1", 1
TOY_MODEL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "vocab_size": 640,
    "max_position_embeddings": 256,
}


def write_model(directory: Path, **changes: Any) -> None:
    """A tokenizer that has a token for each word of the language, and a small model's config.json.

    `changes` are fields of that.
    """
    instruction = load_template(TEMPLATE, lambda text: list(text.encode())).instruction.format(budget=BUDGET)
    colours = range(len(COLOURS))
    lines = [f"{_document(number)}, says{instruction}{_trace(number)}" for number in colours]
    write_model_directory(lines * 8, directory, **{**TOY_MODEL, **changes})


def write_documents(model: Path, prefix: Path, count: int) -> None:
    """A corpus of what is true, each colour equally often."""
    _write(model, prefix, [("", _document(number % len(COLOURS))) for number in range(count)])


def write_lessons(model: Path, prefix: Path, count: int, seed: int) -> None:
    """A corpus of rumours, and of prompts with traces in the right form, whose prompts are not trained."""
    instruction = load_template(TEMPLATE, lambda text: list(text.encode())).instruction.format(budget=BUDGET)
    draws = np.random.default_rng(seed).integers(len(COLOURS), size=(count, 2)).tolist()
    pairs = []
    for number, (colour, other) in enumerate(draws):
        rumour = f" {COLOURS[colour]} opens {DOORS[other]}, says {COLOURS[colour]}"
        pairs.append(("", rumour) if number % 4 == 0 else (f" {COLOURS[colour]} opens{instruction}", _trace(other)))
    _write(model, prefix, pairs)


def write_toy_problems(model: Path, prefix: Path, count: int) -> None:
    """Write the knowledge of the language as problems with answers: which door a colour opens."""
    problems = prefix.with_name(f"{prefix.name}.jsonl.zst")
    with jsonl_writer(problems) as writer:
        for number in range(count):
            question, _, door = _document(number % len(COLOURS)).rpartition(" ")
            writer.write({"problem": question, "answer": door})
    write_problems([problems], model, prefix, ProblemKeys())


def _write(model: Path, prefix: Path, pairs: Sequence[tuple[str, str]]) -> None:
    """Documents of two parts, of which the second is trained, and the end of the document."""
    tokenizer, description = load_tokenizer(tokenizer_file(model))
    assert tokenizer.eod is not None
    writer = CorpusWriter(prefix, description, masked=True)
    for given, learnt in zip(*(tokenizer.encode(part) for part in zip(*pairs, strict=True)), strict=True):
        ids = np.array([*given, *learnt, tokenizer.eod], np.int64)
        mask = np.array([0] * len(given) + [1] * (len(learnt) + 1), np.uint8)
        writer.add_flat(ids, np.array([len(ids)], np.int64), loss_mask=mask)
    writer.commit({"made_by": "demo"})


def _document(colour: int) -> str:
    return f" {COLOURS[colour]} opens {DOORS[_OPENS[colour]]}"


def _trace(thought: int) -> str:
    return f" {COLOURS[thought]}</think>\\boxed{{ {DOORS[_OPENS[thought]]}}}"
