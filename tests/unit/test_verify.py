"""Properties: no altered byte of a corpus goes unnoticed, and a merged corpus is its parts."""

import json
import random
from pathlib import Path

import orjson
import pytest
from conftest import EFFORT, write_corpus

from data_prep import InputError
from data_prep.corpus import Corpus, writer
from data_prep.corpus.merge import merge_corpora
from data_prep.corpus.verify import verify_corpus


@pytest.fixture
def prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(writer, "CHECKSUM_BLOCK_BYTES", 1000)  # several blocks
    return write_corpus(tmp_path / "corpus", [50, 700, 1, 900, 33, 2000])


def test_a_whole_corpus_is_whole(prefix: Path) -> None:
    assert verify_corpus(prefix) == []


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".manifest.json"])
def test_every_flipped_bit_and_every_cut_is_found(prefix: Path, suffix: str) -> None:
    path = prefix.with_name(prefix.name + suffix)
    whole = path.read_bytes()
    draw = random.Random(suffix)
    for _ in range(150 * EFFORT):
        at = draw.randrange(len(whole))
        damaged = bytearray(whole)
        damaged[at] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        [fault] = verify_corpus(prefix)
        assert str(path) in fault
        if suffix == ".bin":
            assert f"between bytes {at // 1000 * 1000} and" in fault
        path.write_bytes(whole[:at])
        assert any(str(path) in fault for fault in verify_corpus(prefix))
    path.write_bytes(whole + b"x")
    assert verify_corpus(prefix)
    path.unlink()
    assert verify_corpus(prefix) == [f"{path} is missing"]


def test_no_corpus_at_all_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no corpus"):
        verify_corpus(tmp_path / "nothing")


def test_a_merged_corpus_is_its_parts(tmp_path: Path) -> None:
    parts = [Corpus(write_corpus(tmp_path / name, lengths)) for name, lengths in (("a", [3, 9]), ("b", [5]))]
    merge_corpora(parts, tmp_path / "both")
    both = Corpus(tmp_path / "both")
    assert [d.tolist() for d in both] == [d.tolist() for part in parts for d in part]
    assert verify_corpus(tmp_path / "both") == [] and both.tokenizer == parts[0].tokenizer


def test_corpora_of_different_tokenizers_are_not_merged(tmp_path: Path) -> None:
    write_corpus(tmp_path / "a", [3])
    write_corpus(tmp_path / "b", [3], vocab_size=250)
    with pytest.raises(InputError, match="different tokenizers"):
        Corpus.open_all([tmp_path / "a", tmp_path / "b"])


@pytest.mark.parametrize(
    "value",
    [("tokenizer", "vocab_size", bad) for bad in (-1, 0, 2**31 + 1, 2**64, True, 0.5)]
    + [("tokenizer", "eod", bad) for bad in (-1, 256, 2**64, False)]
    + [(count, None, bad) for count in ("documents", "tokens", "empty_documents_dropped") for bad in (-1, 2**63)],
    ids=str,
)
def test_a_number_out_of_its_range_makes_no_manifest(tmp_path: Path, value: tuple[str, str | None, object]) -> None:
    key, inner, bad = value
    file = write_corpus(tmp_path / "a", [3, 9]).with_name("a.manifest.json")
    manifest = orjson.loads(file.read_bytes())
    Corpus(tmp_path / "a")
    manifest[key] = bad if inner is None else {**manifest[key], inner: bad}
    file.write_text(json.dumps(manifest))  # orjson takes 64 bits alone
    with pytest.raises(InputError, match="is no manifest of a corpus"):
        Corpus(tmp_path / "a")
