"""Foreign bytes, templates and tokenizers have bounded memory and time, and cost their record alone."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import limits
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from conftest import of_acceptance

from data_prep import InputError
from data_prep.io.files import read_chunks, read_jsonl
from data_prep.io.limited_process import LimitedProcess, Mark, ProcessEnded
from data_prep.tokenize import inputs
from data_prep.tokenize.chunk import Columns, ReadCursor
from data_prep.tokenize.records import records_of
from data_prep.tokenize.tables import TableReader
from data_prep.tokenize.tokenize import TokenizeJob, tokenize


@of_acceptance
def test_hostile_inputs_stay_within_their_bounds(shared_data: Path, tmp_path: Path) -> None:
    for what, figure, bound, unit in limits.measure_all(tmp_path, shared_data / "tokenizers" / "qwen.tiktoken", False):
        assert figure <= bound or unit == "s", f"{what}: {figure} {unit}"  # seconds are for an idle machine


@pytest.mark.parametrize("level", [1, 19])
def test_frames_skippable_frames_and_long_windows_are_read(tmp_path: Path, level: int) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(level, window_log=30, enable_ldm=True)
    texts = [b'{"a": 1}\n' * 1000, b"", b'{"b": 2}\n']
    skippable = b"\x50\x2a\x4d\x18" + (3).to_bytes(4, "little") + b"abc"
    frames = [zstandard.ZstdCompressor(compression_params=parameters).compress(text) for text in texts]
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(skippable.join(frames) + skippable)
    assert b"".join(read_chunks(path, 1000)) == b"".join(texts)
    assert max(map(len, read_chunks(path, 1000))) <= 1000


@pytest.mark.parametrize("suffix", [".jsonl.zst", ".jsonl.gz", ".json.zst"])
def test_an_empty_compressed_file_is_damage(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.touch()
    with pytest.raises(InputError, match="is empty, which no compressed file is"):
        list(read_jsonl(path))


def test_a_record_that_is_too_long_costs_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(inputs, "MAX_RECORD_BYTES", 5000)
    lines = [json.dumps({"text": text}) for text in ("a", "b" * 20_000, "c", "d" * 3000, "e" * 9000)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    columns = Columns((("text",),))
    chunks = list(inputs.read([path], columns))
    found = [(number, isinstance(record, dict)) for chunk in chunks for number, record in records_of(chunk)]
    assert found == [(1, True), (2, False), (3, True), (4, True), (5, False)]
    for chunk in chunks:  # and reading goes on behind each
        again = [number for rest in inputs.read([path], columns, chunk.after) for number, _ in records_of(rest)]
        assert again == [number for number, _ in found if number >= chunk.after.record]


def test_an_item_of_an_array_that_no_parser_takes_costs_itself(tmp_path: Path) -> None:
    odd = ['{"n": ' + "9" * 5000 + ', "s": "]}\\"["}', "[" * 100_000 + "]" * 100_000]
    path = tmp_path / "a.json"
    path.write_text("[" + ", ".join(['{"text": "a"}', odd[0], '{"text": "b"}', odd[1], '{"text": "c"}']) + "]")
    found = [record for chunk in inputs.read([path], Columns((("text",),))) for _, record in records_of(chunk)]
    assert [isinstance(record, dict) for record in found] == [True, False, True, False, True]


def answers(item: str) -> str:
    if item == "panics":
        raise BaseException("as Rust does")
    if item == "exits":
        sys.exit(3)
    return item


def start() -> tuple[str, Callable[[str, Mark], str]]:
    def handle(item: str, mark: Mark) -> str:
        mark(7, 5.0)
        return answers(item)

    return "ready", handle


@pytest.mark.parametrize("item", ["panics", "exits"])
def test_whatever_foreign_code_raises_is_told_and_the_next_call_works(item: str) -> None:
    process = LimitedProcess(start, (), 20.0)
    try:
        with pytest.raises(ProcessEnded) as ended:
            process.call(item, 5.0)
        assert ended.value.at == 7 and "cannot be worked on" in ended.value.reason
        assert process.call("fine", 5.0) == "fine"
    finally:
        process.close()


def test_a_text_on_which_the_tokenizer_fails_costs_itself(shared_data: Path, tmp_path: Path) -> None:
    """A million spaces are too deep for the regular expression of tiktoken."""
    texts = ["good", " " * 1_000_000 + "\u0378", "good too"]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    job = TokenizeJob(
        inputs=(str(tmp_path / "in.jsonl"),),
        tokenizer=shared_data / "tokenizers" / "qwen.tiktoken",
        outputs={"text": tmp_path / "c"},
    )
    manifest = tokenize(job)["text"]
    assert manifest["documents"] + manifest["provenance"]["broken_records"] == 3
    assert manifest["documents"] == 2 and "record 2" in manifest["provenance"]["examples"]["broken"][0]


def test_a_table_is_read_on_where_somebody_killed_its_reader(tmp_path: Path) -> None:
    rows = 4000
    table = pyarrow.table({"text": [f"{number} " * 400 for number in range(rows)]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    seen: list[int] = []
    with TableReader() as tables:
        for chunk in tables.chunks(tmp_path / "a.parquet", Columns((("text",),)), ReadCursor()):
            seen += [number for number, _ in records_of(chunk)]
            if chunk.first == 1 and tables._process is not None:
                tables._process._process.kill()
    assert seen == list(range(1, rows + 1))


@pytest.mark.parametrize("size", [500, 1000, 1500])
def test_lists_and_objects_of_a_table_are_read_across_its_row_groups(tmp_path: Path, size: int) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"q{n % 7}"}], "texts": ["a", f"b{n}"], "meta": {"kind": "same"}}
        for n in range(3000)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=size)
    columns = Columns((("messages",),), whole=True)
    with TableReader() as tables:
        for start in (0, 1700):
            chunks = tables.chunks(tmp_path / "a.parquet", columns, ReadCursor(0, start, start + 1))
            found = [(number, record) for chunk in chunks for number, record in records_of(chunk)]
            assert found == [(number + 1, rows[number]) for number in range(start, 3000)]
