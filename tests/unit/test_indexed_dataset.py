"""Properties of a corpus on disk: Megatron reads what was written, and nothing damaged is opened."""

from pathlib import Path

import numpy as np
import pytest
from conftest import EFFORT
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

from data_prep import InputError
from data_prep.corpus import Corpus, CorpusWriter
from data_prep.corpus.merge import merge_corpora
from data_prep.corpus.verify import verify_corpus


def describe(vocab_size: int) -> dict[str, object]:
    return {"kind": "test", "vocab_size": vocab_size, "eod": None, "fingerprint": "f"}


def write(prefix: Path, documents: list[list[int]], vocab_size: int = 300) -> Path:
    writer = CorpusWriter(prefix, describe(vocab_size))
    for start in range(0, len(documents), 2):  # several calls, as a stream makes them
        writer.add(documents[start : start + 2])
    writer.commit({})
    return prefix


@settings(max_examples=25 * EFFORT, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 255), max_size=20), min_size=1, max_size=12).filter(any),
    st.sampled_from([256, 65_499, 65_500, 152_064]),
)
def test_bytes_equal_megatrons_own_builder(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], vocab_size: int
) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    documents = [*documents, [vocab_size - 1]]
    write(folder / "ours", documents, vocab_size)
    builder = IndexedDatasetBuilder(str(folder / "theirs.bin"), dtype=np.uint16 if vocab_size < 65_500 else np.int32)
    for document in filter(None, documents):
        builder.add_document(np.array(document), [len(document)])
    builder.finalize(str(folder / "theirs.idx"))
    for suffix in (".bin", ".idx"):
        assert (folder / f"ours{suffix}").read_bytes() == (folder / f"theirs{suffix}").read_bytes()


def test_megatrons_reader_gives_the_ids(tmp_path: Path) -> None:
    documents = [[1, 2, 3], [299], [7] * 1000]
    prefix = write(tmp_path / "corpus", documents)
    theirs = IndexedDataset(str(prefix))
    ours = Corpus(prefix)
    assert [theirs[i].tolist() for i in range(len(theirs))] == documents
    assert [ours[i].tolist() for i in range(len(ours))] == documents
    assert ours.span(2, 998, 10).tolist() == [7, 7]  # a span ends with its document


def test_an_id_outside_the_vocabulary_is_an_error_not_a_wrap_around(tmp_path: Path) -> None:
    writer = CorpusWriter(tmp_path / "corpus", describe(65_000))
    with pytest.raises(ValueError, match="token id 70000 is outside the vocabulary of 65000"):
        writer.add([[70_000]])


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
@pytest.mark.parametrize("change", ["truncated", "longer"])
def test_a_file_of_the_wrong_size_is_refused(tmp_path: Path, suffix: str, change: str) -> None:
    prefix = write(tmp_path / "corpus", [[1, 2, 3], [4] * 100])
    path = prefix.with_name(prefix.name + suffix)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] if change == "truncated" else data + b"\0\0")
    with pytest.raises(InputError, match=str(path)):
        Corpus(prefix)


def test_nothing_appears_before_commit_and_nothing_is_overwritten(tmp_path: Path) -> None:
    writer = CorpusWriter(tmp_path / "corpus", describe(300))
    writer.add([[1, 2]])
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".part"]
    writer.commit({})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.bin", "corpus.idx", "corpus.manifest.json"]
    with pytest.raises(InputError, match="already exists"):
        CorpusWriter(tmp_path / "corpus", describe(300))


def test_a_corpus_of_megatrons_own_builder_is_adopted(shared_data: Path, tmp_path: Path) -> None:
    from data_prep.corpus.adopt import adopt_corpus
    from data_prep.tokenizers import load_tokenizer

    tokenizer, description = load_tokenizer(shared_data / "tokenizers" / "qwen.tiktoken")
    documents = [[[1, 2, 3], [151_000]], [[7]]]
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.int32)
    for sentences in documents:
        builder.add_document(np.concatenate(sentences), [len(sentence) for sentence in sentences])
    builder.finalize(str(tmp_path / "theirs.idx"))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    manifest = adopt_corpus(tmp_path / "theirs", description, "qwen.tiktoken")
    assert (manifest["documents"], manifest["tokens"]) == (2, 5)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert verify_corpus(tmp_path / "theirs") == []
    assert [d.tolist() for d in Corpus(tmp_path / "theirs")] == [[1, 2, 3, 151_000], [7]]
    merge_corpora([Corpus(tmp_path / "theirs")] * 2, tmp_path / "twice")
    assert Corpus(tmp_path / "twice").manifest["provenance"]["broken_records"] == 0
    with pytest.raises(InputError, match="already exists"):
        adopt_corpus(tmp_path / "theirs", description, "qwen.tiktoken")
    (tmp_path / "theirs.manifest.json").unlink()
    with pytest.raises(InputError, match="holds the id 151000, and small has 1000: give the tokenizer that made"):
        adopt_corpus(tmp_path / "theirs", {**description, "vocab_size": 1000}, "small")
    (tmp_path / "theirs.bin").write_bytes(b"\0" * 8)
    with pytest.raises(InputError, match="has 8 bytes where its index needs 20"):
        adopt_corpus(tmp_path / "theirs", description, "qwen.tiktoken")
    assert tokenizer.bos is None
