"""Properties of the ledger: the order and the split of an epoch do not show in it; a token too many or too few does."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_davinci.data.documents import Span
from megatron_davinci.data.ledger import Ledger, Tally, tally_by_epoch

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=30)


def whole(lengths: np.ndarray) -> Tally:
    documents = np.arange(len(lengths))
    return Tally.of_spans(documents, np.zeros_like(lengths), lengths, lengths)


def cut(lengths: np.ndarray, random: np.random.Generator) -> list[Span]:
    """Every document in pieces, shuffled."""
    spans = []
    for document, length in enumerate(lengths.tolist()):
        cuts = sorted({0, length, *random.integers(0, length + 1, random.integers(0, 4)).tolist()})
        spans += [Span(document, a, b - a, 0) for a, b in pairwise(cuts)]
    return [spans[i] for i in random.permutation(len(spans))]


@settings(max_examples=50, deadline=None)
@given(LENGTHS, st.integers(0, 1000), st.integers(1, 5))
def test_any_order_and_any_split_over_ranks_gives_the_same(lengths: list[int], seed: int, ranks: int) -> None:
    sizes = np.array(lengths)
    spans = cut(sizes, np.random.default_rng(seed))
    shares = [tally_by_epoch([[span] for span in spans[rank::ranks]], sizes).get(0, Tally()) for rank in range(ranks)]
    assert sum(shares, Tally()) == whole(sizes)
    assert whole(sizes).documents == len(lengths) and whole(sizes).tokens == sum(lengths)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda spans: spans[1:],  # a span lost
        lambda spans: [*spans, spans[0]],  # twice
        lambda spans: [spans[1], *spans[1:]],  # one in place of another of the same length
        lambda spans: [Span(0, 1, 9, 0), *spans[1:]],  # one token less
        lambda spans: [Span(0, 1, 10, 0), *spans[1:]],  # shifted by one
    ],
)
def test_a_mistake_shows(mistake: object) -> None:
    sizes = np.full(4, 10)
    spans = [Span(document, 0, 10, 0) for document in range(4)]
    ledger = Ledger()
    ledger.add("a", 0, tally_by_epoch([spans], sizes)[0])
    ledger.check("a", 0, whole(sizes))
    wrong = Ledger()
    wrong.add("a", 0, tally_by_epoch([mistake(spans)], sizes)[0])
    with pytest.raises(RuntimeError, match="epoch 0 of stage a consumed"):
        wrong.check("a", 0, whole(sizes))


def test_the_ledger_comes_back_from_a_checkpoint() -> None:
    ledger = Ledger()
    ledger.add("a", 0, Tally(3, 30, (1 << 64) - 5))
    ledger.add("a", 1, Tally(1, 7, 12))
    again = Ledger(ledger.entries())
    again.add("a", 0, Tally(1, 1, 7))
    assert again.entries()[0] == {"stage": "a", "epoch": 0, "documents": 4, "tokens": 31, "fingerprint": f"{2:016x}"}
    assert again.entries()[1] == ledger.entries()[1]


def test_epochs_are_kept_apart() -> None:
    sizes = np.array([4, 6])
    by_epoch = tally_by_epoch([[Span(0, 0, 4, 0), Span(1, 0, 6, 1)], [Span(1, 0, 6, 0)]], sizes)
    assert by_epoch[0] == whole(sizes) and by_epoch[1].documents == 1
