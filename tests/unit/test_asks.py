"""What is asked: a function of recipe, corpus and step; the paper's budget and curriculum; ids put together."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep import InputError
from data_prep.corpus import AnnotationWriter, Corpus, CorpusWriter
from data_prep.tokenizers import load_tokenizer
from megatron_davinci.config import parse_recipe
from megatron_davinci.config.objectives import Rmt
from megatron_davinci.data.batches import RunBatches
from megatron_davinci.demo import toy_language as toy_language
from megatron_davinci.rl.prompt_source import NextTokenPrompts
from megatron_davinci.rl.rollout_files import Response, prompt_hash
from megatron_davinci.rl.token_bytes import TokenBytes

DOCUMENTS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's directory and an annotated corpus; the entropies run through all levels."""
    folder = tmp_path_factory.mktemp("doors")
    toy_language.write_model(folder / "model")
    toy_language.write_documents(folder / "model", folder / "docs", DOCUMENTS)
    annotate(Corpus(folder / "docs"), np.random.default_rng(0).uniform(0, 2, 4 * DOCUMENTS))
    return folder


def annotate(corpus: Corpus, entropies: Any, kind: str = "top16") -> None:
    writer = AnnotationWriter(corpus, {"entropy": kind, "model": "-", "precision": "fp32"})
    writer.append(np.asarray(entropies, np.float32))
    writer.commit()


def prompt_source(folder: Path, epochs: int = 2, batch: int = 4, **objective: Any) -> NextTokenPrompts:
    recipe = parse_recipe(
        {
            "model": str(folder / "model"),
            "data": {
                "seq_length": 4096,
                "stages": [{"name": "s", "blend": [{"corpus": str(folder / "docs")}], "epochs": epochs}],
            },
            "batch": {"global_batch_size": batch},
            "schedule": {"lr": 1e-3},
            "objective": {"kind": "rmt", "rollouts": str(folder / "rollouts"), **objective},
            "checkpoint": {"dir": str(folder / "run")},
        }
    )
    stage = RunBatches(recipe).stages[0]
    assert isinstance(stage.recipe.objective, Rmt)
    return NextTokenPrompts(stage, stage.recipe.objective, TokenBytes(folder / "model"))


def test_every_document_is_asked_about_once_an_epoch(folder: Path) -> None:
    asked = [about for step in range(6) for about in prompt_source(folder).prompts(step)]
    pairs = [(about.span.document, about.span.epoch) for about in asked]
    assert sorted(pairs) == [(d, e) for d in range(DOCUMENTS) for e in range(2)]
    assert {len(about.specs) for about in asked} <= {0, 1} and sum(len(about.specs) for about in asked) > DOCUMENTS


def test_asks_hang_on_nothing_but_recipe_corpus_and_step(folder: Path) -> None:
    first, second = prompt_source(folder), prompt_source(folder)
    later = [second.prompts(step) for step in (5, 3, 1)]  # whoever resumes has not asked what came before
    for step, again in zip((5, 3, 1), later, strict=True):
        assert [about.specs for about in first.prompts(step)] == [about.specs for about in again]


def test_other_epochs_ask_for_other_positions(folder: Path) -> None:
    every = prompt_source(folder, epochs=8)
    found: dict[int, set[int]] = {}
    for step in range(24):
        for about in every.prompts(step):
            found.setdefault(about.span.document, set()).update(ask.position for ask in about.specs)
    assert max(map(len, found.values())) > 1


def test_the_budget_is_the_papers_and_stands_in_the_prompt(folder: Path) -> None:
    every = prompt_source(folder, epochs=4, budget={"initial": 100, "gamma": 0.25})
    assert [every.budget(step) for step in (0, 6)] == [100, 50]  # 12 steps: 100 * 0.25^(1/2)
    [about, *_] = [about for about in every.prompts(6) if about.specs]
    ask = about.specs[0]
    prompt = every.prompt(about.ids.tolist(), ask.position, ask.budget)
    assert prompt[: ask.position] == about.ids[: ask.position].tolist()  # never decoded and encoded again
    assert prompt_hash(prompt) == ask.prompt
    text = b"".join(TokenBytes(folder / "model").of(prompt)).decode()
    assert "in about 50 tokens" in text and text.endswith("<think>\n")
    assert every.longest_prompt() >= len(prompt) - ask.position


def test_the_papers_template_stands_around_the_text(folder: Path) -> None:
    every = prompt_source(folder, template="wrap_1")
    [about, *_] = [about for about in every.prompts(0) if about.specs]
    ask = about.specs[0]
    prompt = every.prompt(about.ids.tolist(), ask.position, ask.budget)
    text = b"".join(TokenBytes(folder / "model").of(prompt)).decode()
    assert text.startswith("Complete the given text") and f'"{text[len("Complete") : 0]}' in text
    assert prompt[len(every.preamble) :][: ask.position] == about.ids[: ask.position].tolist()


def test_several_positions_are_different_ones(folder: Path) -> None:
    for about in prompt_source(folder, positions_per_document=3).prompts(0):
        positions = [ask.position for ask in about.specs]
        assert len(set(positions)) == len(positions) and 0 not in positions
        assert about.span.length - 1 not in positions  # the end of the document, which no answer can name


def test_levels_follow_the_curriculum(folder: Path) -> None:
    every = prompt_source(folder, epochs=200, curriculum={"early": [1, 0, 0], "late": [0, 0, 1]})
    asked = {at: [about for step in range(at, at + 60) for about in every.prompts(step)] for at in (0, 540)}
    early, late = (np.mean([ask.level for about in found for ask in about.specs]) for found in asked.values())
    assert early + 0.15 < late  # documents lack levels: then another one is taken, and counted
    assert sum(about.empty_levels for about in asked[0]) > 0


def test_quantiles_are_taken_over_the_whole_stage(folder: Path) -> None:
    entropies = np.array([[9.0, 0.0, 0.5, 9.0], [9.0, 0.1, 0.9, 9.0]] * 2).flatten()
    other = folder.parent / "quantiles"
    other.mkdir()
    toy_language.write_model(other / "model")
    toy_language.write_documents(other / "model", other / "docs", 4)
    annotate(Corpus(other / "docs"), entropies, "full")
    every = prompt_source(other, positions_per_document=3, difficulty={"entropy": "full", "quantiles": [0.4, 0.6, 0.9]})
    found = {(about.span.document % 2, ask.position, ask.level) for about in every.prompts(0) for ask in about.specs}
    # of 0, 0.1, 0.5 and 0.9 nats; the first token of a document and its end, which nobody asks for, do not count
    assert found == {(0, 2, 1), (1, 1, 0), (1, 2, 2)}
    with pytest.raises(InputError, match="annotated with entropies of kind full"):
        prompt_source(other)


def test_what_the_loss_mask_leaves_out_is_not_asked_for(tmp_path: Path) -> None:
    toy_language.write_model(tmp_path / "model")
    tokenizer, description = load_tokenizer(tmp_path / "model" / "tokenizer.json")
    [ids] = tokenizer.encode([" red opens one blue opens two"])
    writer = CorpusWriter(tmp_path / "docs", description, masked=True)
    writer.add_flat(np.array(ids * 4), np.array([len(ids)] * 4), loss_mask=np.array([0, 0, 0, 0, 0, 1] * 4, np.uint8))
    writer.commit({})
    annotate(Corpus(tmp_path / "docs"), np.full(4 * len(ids), 0.7))
    positions = {ask.position for about in prompt_source(tmp_path, epochs=5).prompts(0) for ask in about.specs}
    assert positions == {5}


def test_a_corpus_without_annotation_says_how_to_make_it(tmp_path: Path) -> None:
    toy_language.write_model(tmp_path / "model")
    toy_language.write_documents(tmp_path / "model", tmp_path / "docs", 3)
    with pytest.raises(InputError, match=r"make it with davinci rmt annotate .*docs --model"):
        prompt_source(tmp_path)


def test_a_stage_in_which_nothing_is_hard_enough_is_refused(folder: Path) -> None:
    with pytest.raises(
        InputError, match=r"difficulty begins at 9 nats, .* the most uncertain has [12]\.\d+ nats: lower"
    ):
        prompt_source(folder, difficulty={"thresholds": [9, 10, 11]})


@pytest.mark.parametrize("match", ["token_exact", "byte_prefix", "first_token", "strip_casefold"])
def test_an_answer_is_judged_by_the_token_asked_for(folder: Path, match: Any) -> None:
    every = prompt_source(folder, reward={"grader": match})
    [about, *_] = [about for about in every.prompts(0) if about.specs]
    ids, texts = about.ids.tolist(), TokenBytes(folder / "model")
    grader = every.grader(about, about.specs[0])
    nobody = Response([], [], True)
    token, after = (texts.of(ids)[about.specs[0].position + offset] for offset in (0, 1))
    assert grader(nobody, token) and not grader(nobody, after or b" nothing") and not grader(nobody, None)
    assert grader(nobody, token + after) == (not after or match in ("byte_prefix", "first_token"))
    assert grader(nobody, token.strip().upper()) == (match == "strip_casefold")


def test_without_budget_and_curriculum_nobody_says_how_long(folder: Path) -> None:
    free = prompt_source(folder, template="suffix_free_1", budget=None, curriculum=None)
    asks = [ask for step in range(2) for about in free.prompts(step) for ask in about.specs]
    assert asks and {ask.budget for ask in asks} == {0} and free.budget(1) == 0
    assert free.instruction(0) == free.instruction(5)
    with pytest.raises(
        InputError, match=r"template suffix_1 has {budget}, and the objective has no budget: take a template with free"
    ):
        prompt_source(folder, budget=None)
    with pytest.raises(
        InputError,
        match=r"template suffix_free_1 lacks {budget}, by which length is rewarded: set objective.budget to null",
    ):
        prompt_source(folder, template="suffix_free_1")
