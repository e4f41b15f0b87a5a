"""Tests of the entropies that difficulty is told by: the definition's, whatever the chunks and shards; kept on disk."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import write_corpus
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import IndexedDataset

from data_prep import InputError
from data_prep.corpus import Annotation, AnnotationWriter, Corpus
from data_prep.corpus.verify import verify_corpus
from megatron_davinci.core.losses.entropy import top_entropies
from megatron_davinci.testing import run_on_ranks

DESCRIPTION = {"entropy": "top16", "model": "0", "precision": "fp32"}


def plain(states: torch.Tensor, weight: torch.Tensor, k: int) -> torch.Tensor:
    logits = (states.double() @ weight.double().t()).sort(1, descending=True).values[:, :k]
    probs = logits.softmax(1)
    return -(probs * probs.log()).sum(1)


def inputs(rows: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(rows)
    return torch.randn(rows, 6, generator=g), torch.randn(vocabulary, 6, generator=g)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 30), st.integers(2, 60), st.integers(1, 20), st.integers(1, 2000))
def test_top_entropies_are_the_definitions(rows: int, vocabulary: int, k: int, chunk: int) -> None:
    states, weight = inputs(rows, vocabulary)
    found = top_entropies(states, weight, k, chunk_elements=chunk)
    assert found.shape == (rows,) and torch.allclose(found.double(), plain(states, weight, k), atol=1e-5)


def shard_of_rank(cuts: list[int], k: int) -> torch.Tensor:
    dist.init_process_group("gloo")
    states, weight = inputs(9, cuts[-1])
    rank = dist.get_rank()
    found = top_entropies(states, weight[cuts[rank] : cuts[rank + 1]], k, dist.group.WORLD, chunk_elements=40)
    dist.destroy_process_group()
    return found.numpy()


def test_a_vocabulary_in_shards_gives_the_same_entropies() -> None:
    for found in run_on_ranks(shard_of_rank, 2, [0, 5, 40], 16):  # one shard has fewer tokens than count
        assert torch.allclose(torch.from_numpy(found).double(), plain(*inputs(9, 40), 16), atol=1e-5)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return Corpus(write_corpus(tmp_path / "c", [3, 5, 1, 7]))


def annotate(corpus: Corpus, values: np.ndarray) -> None:
    writer = AnnotationWriter(corpus, DESCRIPTION)
    writer.append(values)
    writer.commit()


def test_an_annotation_lies_beside_its_corpus_and_megatron_reads_it(corpus: Corpus) -> None:
    values = np.random.default_rng(0).random(16).astype(np.float32)
    annotate(corpus, values)
    annotation = Annotation(corpus)
    assert [annotation.of(d).tolist() for d in range(4)] == [part.tolist() for part in np.split(values, [3, 8, 9])]
    theirs = IndexedDataset(str(corpus.prefix) + ".entropy")
    assert [theirs[d].tolist() for d in range(4)] == [annotation.of(d).tolist() for d in range(4)]
    assert verify_corpus(corpus.prefix) == []
    with pytest.raises(InputError, match=r"c\.entropy\.json already exists"):
        AnnotationWriter(corpus, DESCRIPTION)


def test_an_altered_annotation_is_named(corpus: Corpus) -> None:
    annotate(corpus, np.zeros(16, np.float32))
    path = corpus.prefix.with_name("c.entropy.bin")
    path.write_bytes(b"\x01" + path.read_bytes()[1:])
    [fault] = verify_corpus(corpus.prefix)
    assert "c.entropy.bin is altered" in fault


def test_a_killed_writer_leaves_what_another_goes_on_with(corpus: Corpus) -> None:
    values = np.arange(16, dtype=np.float32)
    first = AnnotationWriter(corpus, DESCRIPTION)
    first.append(values[:8])
    with pytest.raises(InputError, match="another process is writing"):
        AnnotationWriter(corpus, DESCRIPTION)
    first.suspend()
    with corpus.prefix.with_name("c.entropy.bin.part").open("ab") as file:
        file.write(b"abcde")  # cut off inside a number
    with pytest.raises(InputError, match="has no annotation of difficulty"):
        Annotation(corpus)
    successor = AnnotationWriter(corpus, DESCRIPTION)
    assert successor.position == 9
    successor.go_back_to(8)
    successor.append(values[8:])
    successor.commit()
    assert Annotation(corpus).entropies.tolist() == values.tolist()


def test_what_another_model_has_begun_is_not_thrown_away(corpus: Corpus) -> None:
    writer = AnnotationWriter(corpus, DESCRIPTION)
    writer.append(np.zeros(8, np.float32))
    writer.suspend()
    with pytest.raises(InputError, match="was begun with another model"):
        AnnotationWriter(corpus, {**DESCRIPTION, "model": "1"})
    assert AnnotationWriter(corpus, DESCRIPTION).position == 8


def test_what_is_no_number_stays_none() -> None:
    states, weight = inputs(3, 20)
    states[1, 2] = torch.nan
    assert top_entropies(states, weight, 16).isfinite().tolist() == [True, False, True]


def test_an_annotation_of_other_contents_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    annotate(corpus, np.zeros(16, np.float32))
    for path in tmp_path.glob("c.*"):
        if "entropy" not in path.name:
            path.unlink()
    with pytest.raises(InputError, match="annotates other contents"):
        Annotation(Corpus(write_corpus(tmp_path / "c", [3, 5, 1, 7], seed=1)))
