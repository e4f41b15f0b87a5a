"""Property: what is read is whole, or refused."""

import gzip
from pathlib import Path

import orjson
import pytest
import zstandard

from data_prep import InputError
from data_prep.io.files import jsonl_writer, new_directory, read_jsonl

RECORDS = [{"text": f"{number:064d}" * 20} for number in range(3000)]
LINES = b"".join(orjson.dumps(record) + b"\n" for record in RECORDS)


def compress(suffix: str) -> bytes:
    if suffix == ".gz":
        return gzip.compress(LINES)
    half = LINES.index(b"\n", len(LINES) // 2) + 1  # two frames, as concatenated files have
    return b"".join(zstandard.ZstdCompressor().compress(part) for part in (LINES[:half], LINES[half:]))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_is_read_whole_or_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"in.jsonl{suffix}"
    data = compress(suffix)
    path.write_bytes(data)
    assert list(read_jsonl(path)) == RECORDS
    for kept in (len(data) - 1, len(data) * 9 // 10, len(data) // 3):
        path.write_bytes(data[:kept])
        with pytest.raises(InputError, match="cut off or damaged"):
            list(read_jsonl(path))
    path.write_bytes(b"nonsense" * 10)
    with pytest.raises(InputError, match="cut off or damaged"):
        list(read_jsonl(path))


def test_a_last_line_without_line_feed_counts(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"a": 1}\n\n{"a": 2}')
    assert [record["a"] for record in read_jsonl(path)] == [1, 2]


@pytest.mark.parametrize("line, message", [(b"{", "line 2, is not JSON"), (b"[1]", "line 2, holds a list")])
def test_a_broken_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line)
    with pytest.raises(InputError, match=message):
        list(read_jsonl(path))


def test_a_file_and_a_directory_appear_complete_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_directory(tmp_path / "out") as part:
        (part / "half").touch()
        raise RuntimeError
    with pytest.raises(RuntimeError), jsonl_writer(tmp_path / "out.jsonl.zst") as writer:
        writer.write({"a": 1})
        raise RuntimeError
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.jsonl.zst").exists()
