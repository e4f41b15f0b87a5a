"""Tests of the order in which a stage draws: limits are met exactly, shares are those of the weights all along."""

import heapq
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_corpus
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import InputError
from megatron_davinci.config import parse_recipe
from megatron_davinci.data.batches import RunBatches
from megatron_davinci.data.streams import EqualStream, Length, Stream, WeightedStream, shuffled

KEY = (7, 11)


@pytest.fixture
def two_corpora(recipe_values: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A recipe whose one stage has two corpora of different lengths."""
    [stage] = recipe_values["data"]["stages"]
    stage["blend"].append({"corpus": str(write_corpus(tmp_path / "other", [40, 3, 17, 64, 9]))})
    return recipe_values


LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def drawn(stream: Stream) -> list[tuple[int, int]]:
    units, epochs = stream.at(0, stream.total)
    return list(zip(units.tolist(), epochs.tolist(), strict=True))


def by_hand(corpora: list[list[int]], weights: list[float], batch: int, tokens: int) -> list[tuple[int, int]]:
    """Units one at a time, out of the corpus that is furthest behind its weight; ends with the step of `tokens`."""
    shares = [weight / sum(weights) for weight in weights]
    first = [0, *accumulate(map(len, corpora))]
    queue = [(0.0, number, 0, 0) for number in range(len(corpora))]  # given for its weight, corpus, unit, tokens given
    found: list[tuple[int, int]] = []
    total = 0
    while total < tokens or len(found) % batch:
        _, number, place, before = heapq.heappop(queue)
        epoch, at = divmod(place, len(corpora[number]))
        unit = int(shuffled(len(corpora[number]), *KEY, number, epoch)[at])
        found.append((first[number] + unit, epoch))
        total, before = total + corpora[number][unit], before + corpora[number][unit]
        heapq.heappush(queue, (before / shares[number], number, place + 1, before))
    return found


def weighted(corpora: list[list[int]], weights: list[float], length: Length) -> WeightedStream:
    of = np.repeat(np.arange(len(corpora)), list(map(len, corpora)))
    return WeightedStream(np.array([t for corpus in corpora for t in corpus]), of, weights, length, KEY)


@settings(max_examples=60, deadline=None)
@given(
    corpora=st.lists(LENGTHS, min_size=1, max_size=4),
    weights=st.lists(st.floats(0.01, 10), min_size=4, max_size=4),
    batch=st.integers(1, 5),
    tokens=st.integers(1, 600),
)
def test_a_blend_by_weight_is_fair_queueing(
    corpora: list[list[int]], weights: list[float], batch: int, tokens: int
) -> None:
    weights = weights[: len(corpora)]
    stream = weighted(corpora, weights, Length(batch, train_tokens=tokens))
    assert drawn(stream) == by_hand(corpora, weights, batch, tokens)
    for step in range(stream.num_batches):
        stop = stream.of_batch(step)[1]
        assert stream.tokens_after(stop) == sum(stream.tokens[unit] for unit, _ in drawn(stream)[:stop])
    by_steps = weighted(corpora, weights, Length(batch, train_iters=stream.num_batches))
    assert drawn(by_steps) == drawn(stream)


@settings(max_examples=60, deadline=None)
@given(corpora=st.lists(LENGTHS, min_size=2, max_size=3), weights=st.lists(st.floats(0.1, 10), min_size=3, max_size=3))
def test_shares_of_tokens_are_the_weights_at_every_moment(corpora: list[list[int]], weights: list[float]) -> None:
    weights = weights[: len(corpora)]
    stream = weighted(corpora, weights, Length(1, train_tokens=900))
    units, _ = stream.at(0, stream.total)
    of = np.repeat(np.arange(len(corpora)), list(map(len, corpora)))[units]
    total = np.cumsum(stream.tokens[units])
    longest = stream.tokens.max()
    for number, weight in enumerate(weights):
        given_ = np.cumsum(np.where(of == number, stream.tokens[units], 0))
        assert (np.abs(given_ - weight / sum(weights) * total) <= longest * len(weights)).all()


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, batch=st.integers(1, 5), tokens=st.integers(1, 300))
def test_a_limit_of_tokens_ends_with_the_step_that_reaches_it(lengths: list[int], batch: int, tokens: int) -> None:
    stream = EqualStream(np.array(lengths), Length(batch, train_tokens=tokens), KEY)
    expected: list[tuple[int, int]] = []
    while sum(lengths[unit] for unit, _ in expected) < tokens or len(expected) % batch:
        epoch, at = divmod(len(expected), len(lengths))
        expected.append((int(shuffled(len(lengths), *KEY, epoch)[at]), epoch))
    assert drawn(stream) == expected and stream.num_batches == len(expected) // batch


def test_a_limit_of_steps_begins_the_blend_anew_as_often_as_needed() -> None:
    stream = EqualStream(np.ones(3, np.int64), Length(2, train_iters=4), KEY)
    assert stream.num_batches == 4 and stream.epochs_after(stream.total) == 8 / 3 and stream.tokens_after(5) == 5
    assert [epoch for _, epoch in drawn(stream)] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert [list(stream.epochs_finished_by(*stream.of_batch(step))) for step in range(4)] == [[], [0], [1], []]


@settings(max_examples=40, deadline=None)
@given(corpora=st.lists(LENGTHS, min_size=1, max_size=3), weights=st.lists(st.floats(0.2, 5), min_size=3, max_size=3))
def test_an_epoch_is_over_when_every_corpus_has_finished_its_own(
    corpora: list[list[int]], weights: list[float]
) -> None:
    stream = weighted(corpora, weights[: len(corpora)], Length(2, train_tokens=500))
    pairs, finished = drawn(stream), []
    for step in range(stream.num_batches):
        start, stop = stream.of_batch(step)
        for epoch in stream.epochs_finished_by(start, stop):
            finished.append(epoch)
            assert sorted(unit for unit, e in pairs[:stop] if e == epoch) == list(range(len(stream.tokens)))
            assert sum(e == epoch for _, e in pairs[:start]) < len(stream.tokens)
    complete = [e for e in range(600) if sum(each == e for _, each in pairs) == len(stream.tokens)]
    assert finished == complete


@pytest.mark.parametrize("unit", ["samples", "sequences"])
def test_a_stage_draws_by_weight(two_corpora: dict[str, Any], unit: str) -> None:
    values = two_corpora
    [stage] = values["data"]["stages"]
    for blend, weight in zip(stage["blend"], (3.0, 1.0), strict=True):
        blend["weight"] = weight
    stage["train_tokens"] = 40_000
    values["batch"] = {"global_batch_size": 4, "unit": unit}
    [found] = RunBatches(parse_recipe(values)).stages
    tokens = [0, 0]
    for step in range(found.num_batches):
        for packed in found.units(step):
            assert len({found.documents.prefix_index(span.document) for span in packed}) == 1
            for span in packed:
                tokens[found.documents.prefix_index(span.document)] += span.length
    assert sum(tokens) >= 40_000 and tokens[0] / sum(tokens) == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize(
    "stage, message",
    [
        ({"epochs": 2, "train_iters": 3}, "epochs and train_iters both say how long the stage is: leave one out"),
        ({"weights": [1.0, None], "train_iters": 3}, "blend gives 1 of its 2 corpora a weight: give each one, or none"),
        ({"weights": [1.0, 2.0]}, "a blend by weight has no end of its own: set train_iters or train_tokens"),
        ({"weights": [1.0, 0.0], "train_iters": 3}, "weight is 0.0: Input should be greater than 0"),
        ({"weights": [1.0, 2.0], "repeat": 2, "train_iters": 3}, "weight and repeat, which both say how much"),
        ({"weights": [1.0, 2.0], "plan": "x", "train_iters": 3}, "packs each corpus by itself, and plan all of them"),
    ],
)
def test_what_contradicts_itself_is_refused(two_corpora: dict[str, Any], stage: dict[str, Any], message: str) -> None:
    [values] = two_corpora["data"]["stages"]
    for blend, weight in zip(values["blend"], stage.pop("weights", [None, None]), strict=True):
        blend["weight"] = weight
    if "repeat" in stage:
        values["blend"][0]["repeat"] = stage.pop("repeat")
    values.update(stage)
    with pytest.raises(InputError, match=message):
        parse_recipe(two_corpora)


def test_a_stage_of_a_trillion_tokens_is_told_at_once(two_corpora: dict[str, Any]) -> None:
    """Nothing grows with the length of a stage, and any step is found without those before it."""
    [stage] = two_corpora["data"]["stages"]
    for blend, weight in zip(stage["blend"], (3.0, 1.0), strict=True):
        blend["weight"] = weight
    stage["train_tokens"] = 10**12
    [found] = RunBatches(parse_recipe(two_corpora)).stages
    assert 10**12 <= found.num_tokens < 10**12 + 2000
    last = found.units(found.num_batches - 1)
    assert len(last) == 18 and last == RunBatches(parse_recipe(two_corpora)).stages[0].units(found.num_batches - 1)
    epochs = found.epochs_of_each()
    tokens = [found.documents.corpora[number].lengths.sum() for number in range(2)]
    assert [e * t for e, t in zip(epochs.values(), tokens, strict=True)] == pytest.approx([7.5e11, 2.5e11], rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(
    corpora=st.lists(LENGTHS, min_size=1, max_size=3),
    weights=st.lists(st.floats(0.01, 10), min_size=3, max_size=3),
    steps=st.lists(st.integers(0, 4000), min_size=1, max_size=5),
)
def test_a_run_goes_on_at_any_step(corpora: list[list[int]], weights: list[float], steps: list[int]) -> None:
    length = Length(3, train_iters=4001)
    whole = drawn(weighted(corpora, weights[: len(corpora)], length))
    jumping = weighted(corpora, weights[: len(corpora)], length)
    for step in steps:
        start, stop = jumping.of_batch(step)
        units, epochs = jumping.at(start, stop)
        assert list(zip(units.tolist(), epochs.tolist(), strict=True)) == whole[start:stop]
