"""Tests of evaluation: positions are drawn once for all models, intervals are Wilson's, tables say what was counted."""

from pathlib import Path

import numpy as np
import pytest
from conftest import write_corpus
from test_asks import DOCUMENTS, annotate, folder

from data_prep import InputError
from data_prep.corpus import Annotation, Corpus, CorpusWriter
from megatron_davinci.config.objectives import Difficulty
from megatron_davinci.evaluate.overlap import documents_of
from megatron_davinci.evaluate.positions import Position, choose_positions, level_counts
from megatron_davinci.evaluate.tables import (
    ModelOutcomes,
    Outcome,
    accuracy_tables,
    summarize_outcomes,
    wilson_interval,
)
from megatron_davinci.rl.difficulty import levels_of
from megatron_davinci.rl.token_bytes import TokenBytes

__all__ = ["annotate", "folder"]


def test_positions_are_candidates_of_their_level_and_no_more_than_wanted(folder: Path) -> None:
    corpus, difficulty, texts = Corpus(folder / "docs"), Difficulty(), TokenBytes(folder / "model")
    every = choose_positions(corpus, difficulty, texts.answerable, 10**6, 100, seed=0)
    few = choose_positions(corpus, difficulty, texts.answerable, 3, 100, seed=0)
    assert level_counts(few) == {"easy": 3, "medium": 3, "hard": 3} and set(few) < set(every)
    assert few == sorted(few) == choose_positions(corpus, difficulty, texts.answerable, 3, 100, seed=0)
    assert few != choose_positions(corpus, difficulty, texts.answerable, 3, 100, seed=1)
    annotation = Annotation(corpus)
    for each in every:
        levels = levels_of(annotation.of(each.document), difficulty.thresholds)
        assert each.position >= 1 and levels[each.position] == each.level
        assert texts.answerable[corpus[each.document][each.position]]
    assert len(every) == sum(
        int(((levels_of(annotation.of(d), difficulty.thresholds) >= 0) & texts.answerable[corpus[d]])[1:].sum())
        for d in range(DOCUMENTS)
    )
    left = choose_positions(corpus, difficulty, texts.answerable, 10**6, 100, seed=0, left_out={0})
    assert left == [each for each in every if each.document != 0] != every
    assert all(each.position <= 1 for each in choose_positions(corpus, difficulty, texts.answerable, 10**6, 1, seed=0))


def test_quantiles_are_those_of_tokens_that_can_be_asked_for(folder: Path) -> None:
    corpus, texts, quantiles = Corpus(folder / "docs"), TokenBytes(folder / "model"), (0.2, 0.5, 0.8)
    found = choose_positions(corpus, Difficulty(quantiles=quantiles), texts.answerable, 10**6, 100, seed=0)
    annotation = Annotation(corpus)
    askable = [
        float(annotation.of(document)[position])
        for document in range(DOCUMENTS)
        for position in range(1, len(corpus[document]))
        if texts.answerable[corpus[document][position]]
    ]
    assert 0 < len(askable) < len(corpus.tokens)
    easy, medium, hard = np.quantile(np.array(askable, np.float64), quantiles).tolist()
    for each in found:
        entropy = float(annotation.of(each.document)[each.position])
        assert each.level == (entropy >= easy) + (entropy >= medium) + (entropy >= hard) - 1
    assert len(found) == sum(entropy >= easy for entropy in askable)


def test_documents_that_were_trained_on_are_left_out(tmp_path: Path) -> None:
    held_out, trained = write_corpus(tmp_path / "held-out", [9, 9, 9, 9]), tmp_path / "trained"
    corpus = Corpus(held_out)
    writer = CorpusWriter(trained, corpus.manifest["tokenizer"])
    writer.add([corpus[2].tolist(), [1, 2, 3], corpus[0].tolist()[:-1]])
    writer.commit({})
    assert documents_of(corpus, [trained, tmp_path / "absent"]) == {2}
    with pytest.raises(InputError, match="holds nothing but documents that the recipe trains on"):
        documents_of(corpus, [held_out])


def test_a_corpus_that_cannot_be_asked_about_is_refused(folder: Path) -> None:
    corpus, texts = Corpus(folder / "docs"), TokenBytes(folder / "model")
    with pytest.raises(InputError, match=r"annotated with entropies of kind top16, .* is full"):
        choose_positions(corpus, Difficulty(entropy="full"), texts.answerable, 5, 100, seed=0)
    with pytest.raises(InputError, match=r"has no position of entropy 5 or more"):
        choose_positions(corpus, Difficulty(thresholds=(5, 6, 7)), texts.answerable, 5, 100, seed=0)


def test_intervals_are_wilsons() -> None:
    """Numbers of Newcombe 1998, table I (without continuity correction)."""
    for right, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert wilson_interval(right, count) == pytest.approx((low, high), abs=1e-4)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=1e-4)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_tables_say_what_was_counted() -> None:
    g = np.random.default_rng(0)
    outcomes = [
        Outcome(Position(n, 1, n % 2), direct=n < 30, reasoned=n % 4 == 0, response_tokens=10 + n % 3, thought_tokens=5,
                closed=bool(g.random() < 0.5))
        for n in range(60)
    ]  # fmt: skip
    summary = summarize_outcomes(ModelOutcomes(outcomes, [2.0, 4.0]))
    assert summary["direct"]["easy"]["correct"] == summary["direct"]["medium"]["correct"] == 15
    assert summary["reasoned"]["easy"]["accuracy"] == 0.5 and summary["reasoned"]["medium"]["correct"] == 0
    assert summary["direct"]["hard"]["count"] == 0 and summary["reasoned"]["average"] == 0.25
    assert summary["response_tokens"] == 11 and summary["seconds_per_batch"] == 3
    assert summary["unclosed_fraction"] == pytest.approx(sum(not o.closed for o in outcomes) / 60)
    text = accuracy_tables({"base": summary, "rmt": summary})
    assert "| Method | Easy (n = 30) | Medium (n = 30) | Hard (n = 0) | Average |" in text
    assert "| rmt (NTR) | 50.00 (33.2 to 66.8) | 0.00 (0.0 to 11.4) | - | 25.00 |" in text
    assert "| base | 11.0 | 5.0 |" in text
