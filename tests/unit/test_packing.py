"""Laws of packing: no token is lost, no sequence overflows, and the fit is best-fit decreasing."""

from pathlib import Path

import numpy as np
import pytest
from conftest import write_corpus
from hypothesis import given
from hypothesis import strategies as st

from data_prep import InputError
from data_prep.corpus import Corpus, load_plan, pack_documents, save_plan

LENGTHS = st.lists(st.integers(0, 70), max_size=60)


def best_fit_decreasing(lengths: list[int], seq_length: int) -> list[int]:
    """Tokens per sequence, by the textbook: longest first, into the fullest sequence that has room."""
    filled: list[int] = []
    for length in sorted(lengths, reverse=True):
        room = [s for s, tokens in enumerate(filled) if tokens + length <= seq_length]
        if room:
            filled[max(room, key=lambda s: filled[s])] += length
        else:
            filled.append(length)
    return filled


@given(LENGTHS, st.integers(1, 100))
def test_every_token_is_in_exactly_one_sequence(lengths: list[int], seq_length: int) -> None:
    plan = pack_documents(np.array(lengths, dtype=np.int64), seq_length, "split")
    covered = [np.zeros(length, dtype=int) for length in lengths]
    for index in range(len(plan)):
        spans = plan.sequence(index)
        assert 0 < sum(length for _, _, length in spans) <= seq_length
        for document, start, length in spans:
            assert start + length <= lengths[document]
            covered[document][start : start + length] += 1
    assert all((tokens == 1).all() for tokens in covered)


@given(LENGTHS, st.integers(1, 100))
def test_the_fit_is_best_fit_decreasing(lengths: list[int], seq_length: int) -> None:
    plan = pack_documents(np.array(lengths, dtype=np.int64), seq_length, "drop")
    fitting = [length for length in lengths if 0 < length <= seq_length]
    filled = [sum(length for _, _, length in plan.sequence(index)) for index in range(len(plan))]
    assert sorted(filled) == sorted(best_fit_decreasing(fitting, seq_length))
    assert plan.num_dropped == sum(length > seq_length for length in lengths)


def test_a_long_document_must_be_asked_for() -> None:
    with pytest.raises(InputError, match="document 1 has 11 tokens, a sequence holds 10"):
        pack_documents(np.array([3, 11]), 10, "error")


@pytest.mark.parametrize("seq_length", [0, -5, 2**24 + 1])
def test_a_sequence_length_out_of_range_is_refused(seq_length: int) -> None:
    with pytest.raises(InputError, match=f"sequence length of {seq_length} is outside"):
        pack_documents(np.array([3]), seq_length, "error")


def test_a_plan_comes_back_as_it_was_and_knows_its_corpora(tmp_path: Path) -> None:
    corpora = [Corpus(write_corpus(tmp_path / name, [5, 20, 3])) for name in ("one", "two")]
    plan = pack_documents(np.concatenate([c.lengths for c in corpora]), 16, "split")
    save_plan(plan, corpora, tmp_path / "plan")
    loaded = load_plan(tmp_path / "plan", corpora)
    assert [loaded.sequence(i) for i in range(len(loaded))] == [plan.sequence(i) for i in range(len(plan))]
    assert loaded.summary() == plan.summary()
    with pytest.raises(InputError, match="was made for one, two"):
        load_plan(tmp_path / "plan", corpora[:1])


def test_a_plan_belongs_to_the_contents_of_its_corpora(tmp_path: Path) -> None:
    first = [Corpus(write_corpus(tmp_path / "a" / "one", [5, 20, 10]))]
    other = [Corpus(write_corpus(tmp_path / "b" / "one", [20, 5, 10]))]  # same name, documents and tokens
    save_plan(pack_documents(first[0].lengths, 16, "split"), first, tmp_path / "plan")
    with pytest.raises(InputError, match="not for these corpora"):
        load_plan(tmp_path / "plan", other)
    with pytest.raises(InputError, match="already exists"):
        save_plan(pack_documents(first[0].lengths, 16, "split"), first, tmp_path / "plan")


def test_an_altered_plan_is_refused(tmp_path: Path) -> None:
    corpora = [Corpus(write_corpus(tmp_path / "one", [5, 20, 3]))]
    save_plan(pack_documents(corpora[0].lengths, 16, "split"), corpora, tmp_path / "plan")
    data = bytearray((tmp_path / "plan").read_bytes())
    data[-1] ^= 1
    (tmp_path / "plan").write_bytes(data)
    with pytest.raises(InputError, match="was altered"):
        load_plan(tmp_path / "plan", corpora)
