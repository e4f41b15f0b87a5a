"""Properties of packing: no token is lost, no sequence overflows, and the fit is best-fit decreasing."""

from pathlib import Path

import numpy as np
import pytest
from conftest import write_corpus
from hypothesis import given
from hypothesis import strategies as st

from data_prep import InputError
from data_prep.corpus import Corpus, load_plan, pack_documents, save_plan
from data_prep.corpus.length_histogram import LengthHistogram
from data_prep.corpus.packing import repeated
from data_prep.io.arithmetic import ceil_to_multiple

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


@given(LENGTHS, st.integers(1, 12), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4, 16]))
def test_aligned_documents_fit_and_lose_no_token(
    lengths: list[int], blocks: int, document_alignment: int, pack_alignment: int
) -> None:
    seq_length = 16 * blocks
    plan = pack_documents(np.array(lengths, np.int64), seq_length, "split", document_alignment, pack_alignment)
    assert plan.num_tokens == sum(lengths)
    for index, padded in enumerate(plan.padded_lengths.tolist()):
        room = sum(-(-length // document_alignment) * document_alignment for _, _, length in plan.sequence(index))
        assert room <= padded <= min(seq_length, room + pack_alignment - 1) and padded % pack_alignment == 0
    filled = sorted(ceil_to_multiple(plan.length, document_alignment).tolist(), reverse=True)
    assert len(plan) == len(best_fit_decreasing(filled, seq_length))


@pytest.mark.parametrize("document, pack, message", [(3, 1, "document alignment of 3"), (1, 6, "pack alignment of 6")])
def test_an_alignment_divides_the_sequence(document: int, pack: int, message: str) -> None:
    with pytest.raises(InputError, match=f"{message} does not divide the sequence length of 16"):
        pack_documents(np.array([3]), 16, "error", document, pack)


def test_a_repeated_corpus_is_packed_that_often(tmp_path: Path) -> None:
    once, thrice = (Corpus(write_corpus(tmp_path / name, [5, 7])) for name in ("once", "thrice"))
    corpora = repeated([once, thrice], [1, 3])
    plan = pack_documents(np.concatenate([corpus.lengths for corpus in corpora]), 16, "error")
    assert sorted(plan.document.tolist()) == list(range(8)) and plan.num_tokens == 12 * 4
    save_plan(plan, corpora, tmp_path / "plan")
    assert load_plan(tmp_path / "plan", [once, thrice, thrice, thrice]).summary() == plan.summary()
    with pytest.raises(InputError, match="not for these corpora"):
        load_plan(tmp_path / "plan", [once, thrice])
    for wrong in ([1], [1, 0]):
        with pytest.raises(InputError, match="give a number from 1 on for each"):
            repeated([once, thrice], wrong)


@given(LENGTHS)
def test_the_histogram_counts_every_document_once(lengths: list[int]) -> None:
    rows = LengthHistogram(np.array(lengths, np.int64)).as_json()
    assert sum(row["documents"] for row in rows) == sum(length > 0 for length in lengths)
    assert sum(row["tokens"] for row in rows) == sum(lengths)
    for row in rows:
        inside = [length for length in lengths if row["from"] <= length <= row["to"]]
        assert (row["documents"], row["tokens"]) == (len(inside), sum(inside))


def test_the_histogram_is_drawn_and_printed(tmp_path: Path) -> None:
    histogram = LengthHistogram(np.array([3, 3, 100, 70_000]))
    histogram.draw(tmp_path / "lengths.png", 32_768)
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")
    assert "65,536-131,071            1          70,000 ####" in histogram.as_text()


def test_an_altered_number_of_a_plan_is_seen(tmp_path: Path) -> None:
    corpora = [Corpus(write_corpus(tmp_path / "corpus", [5, 20, 3]))]
    save_plan(pack_documents(corpora[0].lengths, 32, "error"), corpora, tmp_path / "plan")
    data = (tmp_path / "plan").read_bytes()
    for number in (b'seq_length\\":32', b'num_split\\":0'):
        assert number in data
        (tmp_path / "plan").write_bytes(data.replace(number, number[:-1] + b"7"))
        with pytest.raises(InputError, match="was altered"):
            load_plan(tmp_path / "plan", corpora)
