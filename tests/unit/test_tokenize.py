"""Tests of tokenizing: the tokenizer's own ids whatever the input form, and the same bytes after any interruption."""

import gzip
import hashlib
import json
import random
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from conftest import EFFORT
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

from data_prep import InputError
from data_prep.corpus import Corpus
from data_prep.corpus.verify import verify_corpus
from data_prep.corpus.writer import CorpusWriter
from data_prep.tokenize import inputs, json_array, tables
from data_prep.tokenize.sentences import SentenceSplitter
from data_prep.tokenize.tokenize import TokenizeJob, tokenize
from data_prep.tokenizers import load_tokenizer
from data_prep.tokenizers.encoder import GigatokenEncoder, ReferenceEncoder, fastest_exact


@pytest.fixture(scope="module")
def qwen(shared_data: Path) -> Path:
    return shared_data / "tokenizers" / "qwen.tiktoken"


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Real source text, some of it not ASCII, a text in NFD and an empty one."""
    files = sorted(Path(json.__file__).parents[1].rglob("*.py"))[:60]
    return [*(path.read_text() for path in files), "Cafe\u0301 東京 🙂 <|endoftext|>", "", "x\r\ny\u2028z"]


def write_lines(path: Path, texts: list[str], **others: object) -> Path:
    data = b"".join(json.dumps({"text": text, **others}).encode() + b"\n" for text in texts)
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(data))
    return path


def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (inputs, json_array, tables):
        monkeypatch.setattr(module, "CHUNK_BYTES", 1 << 16)


def job_of(path: Path | str, tokenizer: Path, prefix: Path, **others: object) -> TokenizeJob:
    return TokenizeJob(inputs=(str(path),), tokenizer=tokenizer, outputs={"text": prefix}, **others)


def digests(folder: Path, name: str = "corpus") -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob(f"{name}.*"))}


def test_documents_are_the_tokenizers_own_ids_and_end_with_eod(qwen: Path, texts: list[str], tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", texts)
    manifest = tokenize(job_of(source, qwen, tmp_path / "corpus", append_eod=True))["text"]
    tokenizer, _ = load_tokenizer(qwen)
    corpus = Corpus(tmp_path / "corpus")
    expected = [[*ids, tokenizer.eod] for ids in tokenizer.encode(texts) if ids]
    assert [document.tolist() for document in corpus] == expected
    assert manifest["empty_documents_dropped"] == 1 and manifest["documents"] == len(texts) - 1
    assert verify_corpus(tmp_path / "corpus") == []
    assert [path.name for path in tmp_path.glob("*.part")] == []


def test_every_form_of_input_gives_the_same_corpus(qwen: Path, texts: list[str], tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    forms = tmp_path / "forms"
    (forms / "directory" / "deeper").mkdir(parents=True)
    table = pyarrow.table({"text": texts, "other": list(range(len(texts)))})
    pyarrow.parquet.write_table(table, forms / "rows.parquet", row_group_size=7)
    Dataset(table).save_to_disk(forms / "saved")
    DatasetDict(train=Dataset(table)).save_to_disk(forms / "splits")
    Dataset(table).save_to_disk(forms / "below" / "saved")
    write_lines(forms / "directory" / "a.jsonl", texts[:20])
    write_lines(forms / "directory" / "deeper" / "b.jsonl.zst", texts[20:])
    plain = write_lines(forms / "plain.jsonl", texts)
    plain.write_bytes(plain.read_bytes().removesuffix(b"\n"))  # a last line may lack its end
    write_lines(forms / "packed.jsonl.gz", texts)
    write_lines(forms / "packed.jsonl.zst", texts)
    names = [
        "plain.jsonl",
        "packed.jsonl.gz",
        "packed.jsonl.zst",
        "rows.parquet",
        "saved",
        "splits",
        "directory",
        "below",
    ]
    hashes = set()
    for number, name in enumerate([*names, "directory/**/*.jsonl*", "directory/**"]):
        tokenize(job_of(forms / name, qwen, tmp_path / str(number) / "corpus"))
        found = digests(tmp_path / str(number))
        hashes.add((found["corpus.bin"], found["corpus.idx"]))
    assert len(hashes) == 1


def test_the_number_of_workers_does_not_matter(qwen: Path, texts: list[str], tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", texts * 6)  # several chunks
    for workers in (1, 2):
        tokenize(job_of(source, qwen, tmp_path / str(workers) / "corpus", workers=workers))
    assert digests(tmp_path / "1") == digests(tmp_path / "2")


def fuzzed(count: int) -> list[str]:
    """Short texts of anything: all of Unicode, white space, digits, marks, control tokens, pieces of source."""
    draw = random.Random(1)
    pieces = [
        "<|im_end|>",
        "<|endoftext|>",
        "  ",
        "\n\n",
        "\r\n",
        "\t",
        "'s",
        "'LL",
        "é",
        "e\u0301",
        "123",
        "_x",
        "🙂",
        "\0",
    ]
    letters = [chr(draw.choice([draw.randrange(0xD800), draw.randrange(0xE000, 0x110000)])) for _ in range(2000)]
    return ["".join(draw.choices(pieces + draw.sample(letters, 20), k=draw.randrange(1, 40))) for _ in range(count)]


@pytest.mark.parametrize("kind", ["tiktoken", "huggingface"])
def test_the_fast_path_gives_the_same_ids_on_anything(qwen: Path, qwen_json: Path, kind: str) -> None:
    tokenizer, _ = load_tokenizer(qwen_json if kind == "huggingface" else qwen)
    encoder = fastest_exact(tokenizer)
    assert isinstance(encoder, GigatokenEncoder)
    texts = fuzzed(3000 * EFFORT)
    ids, lengths = encoder.encode(texts)
    assert np.split(ids, np.cumsum(lengths)[:-1])[-1].tolist() == tokenizer.encode(texts[-1:])[0]
    expected = tokenizer.encode(texts)
    assert lengths.tolist() == [len(document) for document in expected]
    assert ids.tolist() == [token for document in expected for token in document]


def test_the_fast_path_gives_the_same_ids_for_every_character(qwen: Path) -> None:
    tokenizer, _ = load_tokenizer(qwen)
    codes = [*range(0xD800), *range(0xE000, 0x110000)]
    texts = ["".join(f"{chr(c)}'t{chr(c)}a 1{chr(c)}" for c in codes[at : at + 64]) for at in range(0, len(codes), 64)]
    ids, lengths = GigatokenEncoder(tokenizer).encode(texts)
    for start in range(0, len(texts), 1024):
        expected = [token for document in tokenizer.encode(texts[start : start + 1024]) for token in document]
        begin, end = lengths[:start].sum(), lengths[: start + 1024].sum()
        assert ids[begin:end].tolist() == expected


def test_a_tokenizer_that_gigatoken_gets_wrong_falls_back(shared_data: Path, texts: list[str], tmp_path: Path) -> None:
    for name in ("botchan_en_bpe_1000.model", "botchan_en_unigram_1000.model"):
        path = shared_data / "tokenizers" / "sentencepiece_testdata" / name
        tokenizer, description = load_tokenizer(path)
        with pytest.warns(UserWarning, match="gigatoken"):
            tokenize(job_of(write_lines(tmp_path / "in.jsonl", texts), path, tmp_path / name / "corpus"))
        corpus = Corpus(tmp_path / name / "corpus")
        assert corpus.tokens.dtype == np.uint16 and description["eod"] == 2
        assert [document.tolist() for document in corpus] == [ids for ids in tokenizer.encode(texts) if ids]

    class Wrong:
        def __init__(self) -> None:
            self.encode = tokenizer.encode

        def gigatoken(self) -> object:
            class Backend:
                def encode_batch(self, texts: list[str], parallel: bool) -> object:
                    import awkward

                    return awkward.Array([[1, 2]] * len(texts))

            return Backend()

    with pytest.warns(UserWarning, match="other ids"):
        assert isinstance(fastest_exact(Wrong()), ReferenceEncoder)


def test_the_encoder_is_made_anew_when_its_memory_grows(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from data_prep.tokenizers import encoder as module

    tokenizer, _ = load_tokenizer(qwen)
    encoder = GigatokenEncoder(tokenizer)
    first = encoder._backend
    memory = iter([10**12, 10**12, 10**12, 0, 0])  # grown, not given back, then small again
    monkeypatch.setattr(GigatokenEncoder, "_memory", lambda self: next(memory))
    before = encoder.encode(["some text"])
    assert encoder._backend is not first and encoder._limit == 10**12 + module._LEAST_CACHE_BYTES
    second = encoder._backend
    after = encoder.encode(["some text"])
    assert encoder._backend is second and after[0].tolist() == before[0].tolist()


def test_several_keys_give_several_corpora(qwen: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"a": "one", "b": "two words"}\n{"a": "", "b": "three"}\n')
    outputs = {key: tmp_path / f"out_{key}" for key in "ab"}
    tokenize(replace(job_of(tmp_path / "in.jsonl", qwen, tmp_path), outputs=outputs))
    tokenizer, _ = load_tokenizer(qwen)
    assert [d.tolist() for d in Corpus(tmp_path / "out_a")] == tokenizer.encode(["one"])
    assert [d.tolist() for d in Corpus(tmp_path / "out_b")] == tokenizer.encode(["two words", "three"])


def test_broken_records_are_counted_and_named_or_stop(qwen: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "good"}\n{"text": "cut o\n\n[1]\n{"text": "good too"}\n')
    provenance = tokenize(job_of(source, qwen, tmp_path / "lenient"))["text"]["provenance"]
    assert provenance["broken_records"] == 2 and len(Corpus(tmp_path / "lenient")) == 2
    assert [example[:18] for example in provenance["examples"]["broken"]] == [
        "in.jsonl, record 2",
        "in.jsonl, record 4",
    ]
    with pytest.raises(InputError, match="record 2, is not JSON"):
        tokenize(job_of(source, qwen, tmp_path / "strict", strict=True))
    assert not list(tmp_path.glob("strict*"))


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"content": "x", "n": 1}', "record 1, has no text under 'text'; its text fields are: content"),
        ('{"text": 3}', "record 1, holds a int under 'text'; it must be a text"),
        ('{"text": [{"role": "user"}]}', "for conversations give --chat"),
        ('{"text": ""}', "no document with text"),
        ("nonsense", "no record under 'text' could be used: in.jsonl, record 1, is not JSON"),
    ],
)
def test_bad_records_leave_nothing(qwen: Path, tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "in.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=message):
        tokenize(job_of(tmp_path / "in.jsonl", qwen, tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
    "argument, message",
    [
        ("missing.jsonl", "does not exist"),
        ("*.nothing", "matches no file"),
        ("empty", "holds no saved dataset and no file"),
        ("notes.txt", "is no known input"),
        ("broken.parquet", "not a whole table"),
        ("other.parquet", "has no column 'text'; its columns are: content"),
        ("cut.jsonl.zst", "cut off or damaged"),
    ],
)
def test_bad_inputs_are_named(qwen: Path, tmp_path: Path, argument: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1xxxx")
    pyarrow.parquet.write_table(pyarrow.table({"content": ["x"]}), tmp_path / "other.parquet")
    (tmp_path / "cut.jsonl.zst").write_bytes(zstandard.compress(b'{"text": "x"}\n' * 99)[:-4])
    with pytest.raises(InputError, match=message):
        tokenize(job_of(tmp_path / argument, qwen, tmp_path / "out"))
    assert not list(tmp_path.glob("out*"))


def test_sentences_are_megatrons_sequences(qwen: Path, tmp_path: Path) -> None:
    texts = ["Mr. Smith came. He left!\n\nIt rained.  Then it stopped.", "One only", "", "A. b? C."] * 20
    source = write_lines(tmp_path / "in.jsonl", texts)
    tokenize(job_of(source, qwen, tmp_path / "corpus", split_sentences=True, append_eod=True))
    tokenizer, _ = load_tokenizer(qwen)
    splitter = SentenceSplitter(tmp_path / "corpus.punkt", keep_space=True)
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.int32)
    for text in filter(None, texts):
        sentences = splitter.split(text)
        assert "".join(sentences) == text
        encoded = tokenizer.encode(sentences)
        encoded[-1].append(tokenizer.eod)
        builder.add_document(np.concatenate(encoded), [len(ids) for ids in encoded])
    builder.finalize(str(tmp_path / "theirs.idx"))
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"corpus{suffix}").read_bytes() == (tmp_path / f"theirs{suffix}").read_bytes()
    assert len(IndexedDataset(str(tmp_path / "corpus"))) > len(Corpus(tmp_path / "corpus")) == 60


def test_a_punkt_model_can_be_given_and_white_space_dropped(qwen: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", ["We met Dr. Who. He left.", "Dr. No came."] * 50)
    tokenize(job_of(source, qwen, tmp_path / "a", split_sentences=True))
    given = SentenceSplitter(tmp_path / "a.punkt", keep_space=False)
    assert given.split("It was good.  They came.\n") == ["It was good.", "They came."]
    tokenize(job_of(source, qwen, tmp_path / "b", split_sentences=True, punkt=tmp_path / "a.punkt"))
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()
    with pytest.raises(InputError, match="punkt_tab"):
        SentenceSplitter(tmp_path, keep_space=True)


def test_two_processes_do_not_write_one_corpus(tmp_path: Path) -> None:
    description = {"kind": "test", "vocab_size": 9, "eod": None, "fingerprint": "f"}
    writer = CorpusWriter(tmp_path / "corpus", description)
    with pytest.raises(InputError, match="another process is writing corpus"):
        CorpusWriter(tmp_path / "corpus", description)
    writer.add([[1, 2]])
    writer.commit({})
    with pytest.raises(InputError, match="already exists"):
        CorpusWriter(tmp_path / "corpus", description)


CHAT = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "chat"])
def test_interrupted_it_goes_on_in_every_form_of_input(
    qwen: Path, texts: list[str], tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_chunks(monkeypatch)
    monkeypatch.setattr(tables, "_MOST_ROWS", 16)
    source = tmp_path / f"in.{form.replace('chat', 'jsonl')}"
    others = {}
    if form == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": texts * 10}), source)
    elif form == "chat":
        (tmp_path / "chat.jinja").write_text(CHAT)
        others = {"conversations": True, "chat_template": tmp_path / "chat.jinja"}
        turns = (
            [{"role": "user", "content": "?"}, {"role": "assistant", "content": text[:3000]}] for text in texts * 10
        )
        source.write_text("".join(json.dumps({"text": turn}) + "\n" for turn in turns))
    else:
        write_lines(source, texts * 10)
    done: list[int] = []

    def stop_after_a_while(records: int) -> None:
        done.append(records)
        time.sleep(0.05)  # the journal is written in the background
        if len(done) == 4:
            raise KeyboardInterrupt

    job = job_of(source, qwen, tmp_path / "stopped" / "corpus", **others)
    with pytest.raises(KeyboardInterrupt):
        tokenize(job, stop_after_a_while, journal_every_bytes=1)
    rest: list[int] = []
    tokenize(job, rest.append)
    tokenize(job_of(source, qwen, tmp_path / "whole" / "corpus", **others))
    assert digests(tmp_path / "stopped") == digests(tmp_path / "whole")
    assert sum(rest) < len(texts) * 10


def test_a_changed_input_is_not_gone_on_with(qwen: Path, texts: list[str], tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", texts * 20)
    job = job_of(source, qwen, tmp_path / "corpus")
    seen = 0

    def stop(records: int) -> None:
        nonlocal seen
        seen += records
        if seen > len(texts) * 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenize(job, stop, journal_every_bytes=1)
    time.sleep(0.3)  # the journal is written in the background
    assert (tmp_path / "corpus.journal.part").exists() and not (tmp_path / "corpus.idx").exists()
    done = []
    write_lines(source, texts * 20, changed=True)
    tokenize(job, done.append)
    assert sum(done) == len(texts) * 20  # from the beginning
    assert [path.name for path in tmp_path.glob("*.part")] == []


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_later(qwen: Path, texts: list[str], tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", texts * 3)
    command = [Path(sys.executable).with_name("davinci"), "data", "tokenize", source, "--tokenizer", qwen, "--out"]

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    out = tmp_path / "out" / "corpus"
    full = subprocess.run([*command, out], capture_output=True, text=True, preexec_fn=small_files, check=False)
    assert full.returncode == 1 and full.stderr.startswith("error: cannot write") and full.stderr.count("\n") == 1
    assert not [path for path in out.parent.iterdir() if path.suffix != ".part"]
    assert subprocess.run([*command, out], capture_output=True, check=False).returncode == 0
    assert verify_corpus(out) == []


def test_megatrons_flags_give_megatrons_files(qwen: Path, texts: list[str], tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", texts)
    tool = Path(__file__).parents[2] / "tools" / "preprocess_data.py"
    command = [sys.executable, tool, "--input", source, "--output-prefix", tmp_path / "out", "--workers", "1"]
    flags = ["--tokenizer-type", "TikTokenizer", "--tokenizer-model", qwen, "--append-eod", "--partitions", "1"]
    subprocess.run([*command, *flags], check=True, capture_output=True)
    tokenize(job_of(source, qwen, tmp_path / "ours", append_eod=True))
    for suffix in ("bin", "idx"):
        megatrons = tmp_path / f"out_text_document.{suffix}"
        assert megatrons.read_bytes() == (tmp_path / f"ours.{suffix}").read_bytes()
    subprocess.run([*command, *flags, "--split-sentences"], check=True, capture_output=True, env={})
    assert (tmp_path / "out_text_sentence.idx").is_file()
    wrong = subprocess.run([*command[:-1], "0", *flags[2:4]], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: --workers is 0")


def interrupted(job: TokenizeJob, chunks: int = 3) -> None:
    """Begin a job, and stop it after a few chunks with its journal written."""
    done: list[int] = []

    def stop(records: int) -> None:
        done.append(records)
        time.sleep(0.05)
        if len(done) == chunks:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenize(job, stop, journal_every_bytes=1)


def test_a_run_with_other_keys_begins_anew(
    qwen: Path, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_chunks(monkeypatch)
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": text, "other": text[::-1]}) + "\n" for text in texts * 4))
    interrupted(job_of(source, qwen, tmp_path / "corpus"))
    job = replace(job_of(source, qwen, tmp_path / "corpus"), outputs={"other": tmp_path / "corpus"})
    tokenize(job)
    tokenize(replace(job, outputs={"other": tmp_path / "whole"}))
    assert (tmp_path / "corpus.bin").read_bytes() == (tmp_path / "whole.bin").read_bytes()


@pytest.mark.parametrize("moment", ["checksums", "manifest", "renames"])
def test_a_crash_while_it_commits_is_made_good(
    qwen: Path, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    source = write_lines(tmp_path / "in.jsonl", texts * 6)
    job = job_of(source, qwen, tmp_path / "corpus")
    original = Path.replace

    def crash(*arguments: object) -> None:
        raise MemoryError

    def crash_after_the_first(path: Path, target: Path) -> Path:
        if target.name.endswith("manifest.json") and target.name.startswith("corpus"):
            raise MemoryError
        return original(path, target)

    with monkeypatch.context() as patched:
        if moment == "checksums":
            patched.setattr(CorpusWriter, "_checksums", crash)
        elif moment == "manifest":
            patched.setattr("data_prep.corpus.writer.write_json", crash)
        else:
            patched.setattr(Path, "replace", crash_after_the_first)
        with pytest.raises(MemoryError):
            tokenize(job, journal_every_bytes=1)
    assert not (tmp_path / "corpus.idx").exists()
    tokenize(job)
    tokenize(job_of(source, qwen, tmp_path / "whole"))
    for suffix in ("bin", "idx", "manifest.json"):
        assert (tmp_path / f"corpus.{suffix}").read_bytes() == (tmp_path / f"whole.{suffix}").read_bytes()
    assert not list(tmp_path.glob("*.part"))


def test_a_key_that_is_empty_everywhere_leaves_nothing(qwen: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"a": "one", "b": ""}\n')
    job = replace(job_of(tmp_path / "in.jsonl", qwen, tmp_path), outputs={key: tmp_path / f"out_{key}" for key in "ab"})
    with pytest.raises(InputError, match="no document with text under 'b'"):
        tokenize(job)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_second_process_leaves_the_first_ones_punkt_alone(qwen: Path, texts: list[str], tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", texts)
    job = job_of(source, qwen, tmp_path / "corpus", split_sentences=True)

    def second(records: int) -> None:
        before = sorted((path.name, path.read_bytes()) for path in (tmp_path / "corpus.punkt.part").iterdir())
        with pytest.raises(InputError, match="another process is writing"):
            tokenize(job)
        assert before == sorted((path.name, path.read_bytes()) for path in (tmp_path / "corpus.punkt.part").iterdir())

    tokenize(job, second)
    assert (tmp_path / "corpus.punkt").is_dir() and not list(tmp_path.glob("*.part"))
    (tmp_path / "other.punkt").mkdir()
    with pytest.raises(InputError, match=r"other.punkt already exists"):
        tokenize(replace(job, outputs={"text": tmp_path / "other"}))


def test_what_python_writes_as_json_is_read(qwen: Path, tmp_path: Path) -> None:
    lines = ['\ufeff{"text": "one"}', '{"text": "two", "score": NaN}', '{"text": "\\ud800"}', '[{"text": "four"}]']
    (tmp_path / "in.jsonl").write_text("\n".join(lines), encoding="utf-8")
    provenance = tokenize(job_of(tmp_path / "in.jsonl", qwen, tmp_path / "out"))["text"]["provenance"]
    tokenizer, _ = load_tokenizer(qwen)
    assert [document.tolist() for document in Corpus(tmp_path / "out")] == tokenizer.encode(["one", "two"])
    assert provenance["broken_records"] == 2


def test_a_directory_is_no_prefix(qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="is a directory, not a PREFIX"):
        tokenize(job_of(write_lines(tmp_path / "in.jsonl", ["x"]), qwen, Path()))
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_pattern_takes_each_file_once_and_splits_are_chosen(qwen: Path, tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    (tmp_path / "d" / "e").mkdir(parents=True)
    for name in ("d/a.jsonl", "d/e/b.jsonl"):
        write_lines(tmp_path / name, ["x"])
    found = inputs.expand([f"{tmp_path}/d/**"])
    assert [path.name for path in found] == ["a.jsonl", "b.jsonl"]
    assert len(inputs.expand([f"{tmp_path}/d", f"{tmp_path}/d"])) == 4  # what is asked for twice is taken twice
    DatasetDict(train=Dataset.from_dict({"text": ["a"]}), test=Dataset.from_dict({"text": ["b"]})).save_to_disk(
        tmp_path / "two"
    )
    with pytest.raises(InputError, match="holds the splits train, test: give one"):
        tokenize(job_of(tmp_path / "two", qwen, tmp_path / "out"))
    tokenize(job_of(tmp_path / "two" / "train", qwen, tmp_path / "out"))


def test_large_cells_come_in_small_batches(tmp_path: Path) -> None:
    draw = random.Random(0)
    texts = [draw.randbytes(250_000).hex() for _ in range(40)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "in.parquet")
    chunks = list(inputs.read([tmp_path / "in.parquet"], inputs.Columns((("text",),))))
    assert [chunk.first for chunk in chunks][:2] != [1, 41]
    assert max(chunk.size for chunk in chunks) <= 2 * inputs.CHUNK_BYTES


def test_lists_are_the_sequences_of_a_document_as_in_megatron(qwen: Path, tmp_path: Path) -> None:
    documents = [["First part. ", "", "Second"], "one text", [], ["only"]]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in documents))
    manifest = tokenize(job_of(tmp_path / "in.jsonl", qwen, tmp_path / "corpus", append_eod=True))["text"]
    tokenizer, _ = load_tokenizer(qwen)
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.int32)
    for document in (["First part. ", "Second"], ["one text"], ["only"]):
        encoded = tokenizer.encode(document)
        encoded[-1].append(tokenizer.eod)
        builder.add_document(np.concatenate(encoded), [len(ids) for ids in encoded])
    builder.finalize(str(tmp_path / "theirs.idx"))
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"corpus{suffix}").read_bytes() == (tmp_path / f"theirs{suffix}").read_bytes()
    assert manifest["empty_documents_dropped"] == 1


@pytest.mark.parametrize("suffix", [".json", ".json.gz", ".json.zst"])
def test_a_json_array_is_read_as_its_lines_are(
    qwen: Path, texts: list[str], tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_chunks(monkeypatch)
    records: list[object] = [*({"text": text, "n": 1.5} for text in texts), 7, {"text": None}]
    array = b"\xef\xbb\xbf \n" + json.dumps(records, indent=1).encode()
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(Path(suffix).suffix, bytes)
    (tmp_path / f"in{suffix}").write_bytes(pack(array))
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    manifests = [
        tokenize(job_of(tmp_path / f"in{end}", qwen, tmp_path / end / "c"))["text"] for end in (suffix, ".jsonl")
    ]
    assert digests(tmp_path / suffix, "c")["c.bin"] == digests(tmp_path / ".jsonl", "c")["c.bin"]
    assert manifests[0]["provenance"]["broken_records"] == manifests[1]["provenance"]["broken_records"] == 1
    chunks = list(inputs.read([tmp_path / f"in{suffix}"], inputs.Columns((("text",),))))
    again = list(inputs.read([tmp_path / f"in{suffix}"], inputs.Columns((("text",),)), chunks[1].after))
    assert len(chunks) > 3 and [chunk.lines for chunk in again] == [chunk.lines for chunk in chunks[2:]]


def test_a_json_array_that_is_cut_off_is_named(qwen: Path, tmp_path: Path) -> None:
    for content in ('[{"text": "a"}, {"tex', '[{"text": "a"}', '[{"text": "a"}] x'):
        (tmp_path / "in.json").write_text(content)
        with pytest.raises(InputError, match=r"in.json is no whole JSON array of records"):
            tokenize(job_of(tmp_path / "in.json", qwen, tmp_path / "corpus"))
        assert [path.name for path in tmp_path.iterdir()] == ["in.json"]


def test_a_key_may_lie_one_level_down(qwen: Path, tmp_path: Path) -> None:
    records = [{"meta": {"body": "one"}}, {"meta.body": "two", "meta": {"body": "not this"}}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"meta": {"body": "three"}}]), tmp_path / "in.parquet")
    job = job_of(tmp_path / "in.*", qwen, tmp_path / "corpus")
    tokenize(replace(job, outputs={"meta.body": tmp_path / "corpus"}))
    tokenizer, _ = load_tokenizer(qwen)
    assert [d.tolist() for d in Corpus(tmp_path / "corpus")] == tokenizer.encode(["one", "two", "three"])


@pytest.mark.parametrize("split", [False, True])
def test_bos_where_the_tokenizer_wants_it(qwen_json: Path, tmp_path: Path, split: bool) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes(qwen_json.read_bytes())
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<|im_start|>", "add_bos_token": true}')
    tokenizer, _ = load_tokenizer(folder)
    assert tokenizer.adds_bos and tokenizer.bos == tokenizer.control_tokens["<|im_start|>"]
    source = write_lines(tmp_path / "in.jsonl", ["hello world", "", "It rained. Then it stopped. " * 9])
    with pytest.warns(UserWarning, match="puts a token before texts .BOS., and these documents have none"):
        tokenize(job_of(source, folder, tmp_path / "without", split_sentences=split))
    tokenize(job_of(source, folder, tmp_path / "with", split_sentences=split, prepend_bos=True))
    with_bos, without = Corpus(tmp_path / "with"), Corpus(tmp_path / "without")
    assert [d.tolist() for d in with_bos] == [[tokenizer.bos, *d.tolist()] for d in without] and len(without) == 2
    if split:
        theirs = [IndexedDataset(str(tmp_path / name)) for name in ("with", "without")]  # they own what is read
        ours, plain = (each.sequence_lengths.tolist() for each in theirs)
        assert ours == [length + (number in (0, 1)) for number, length in enumerate(plain)] and len(plain) > 2


def test_bos_that_is_not_there_is_refused(qwen: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="declares no token that begins a text: leave --prepend-bos out"):
        tokenize(job_of(write_lines(tmp_path / "in.jsonl", ["a"]), qwen, tmp_path / "corpus", prepend_bos=True))


def test_where_a_post_processor_says_what_begins_a_text(qwen_json: Path, tmp_path: Path) -> None:
    definition = json.loads(qwen_json.read_bytes())
    single = [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    template = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}}
    definition["post_processor"] = {"type": "Sequence", "processors": [{"type": "ByteLevel"}, template]}  # Llama 3's
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    tokenizer, _ = load_tokenizer(tmp_path)
    assert tokenizer.adds_bos and tokenizer.bos == tokenizer.control_tokens["<|im_start|>"]
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    assert not load_tokenizer(tmp_path)[0].adds_bos


def late_damage(folder: Path, texts: list[str]) -> list[Path]:
    """Three inputs, the last of them cut off."""
    files = [write_lines(folder / f"{number}.jsonl.zst", texts * 3) for number in range(3)]
    files[2].write_bytes(files[2].read_bytes()[:-2000])
    return files


@pytest.mark.parametrize("remedy", ["corrected", "left out"])
def test_what_was_done_before_a_damaged_input_is_kept(
    qwen: Path, texts: list[str], tmp_path: Path, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_chunks(monkeypatch)
    files = late_damage(tmp_path, texts)
    job = replace(job_of("", qwen, tmp_path / "corpus"), inputs=tuple(map(str, files)))
    with pytest.raises(InputError, match=r"2.jsonl.zst is cut off or damaged .*what was encoded before it is kept"):
        tokenize(job)
    assert not list(tmp_path.glob("corpus.idx"))
    if remedy == "corrected":
        write_lines(files[2], texts * 3)
    else:
        job = replace(job, inputs=job.inputs[:2])
    read_again: list[int] = []
    tokenize(job, on_progress=read_again.append)
    assert sum(read_again) <= (len(job.inputs) - 2) * 3 * len(texts), "no input before the damaged one is read again"
    tokenize(replace(job, outputs={"text": tmp_path / "fresh"}))
    ours, fresh = digests(tmp_path), digests(tmp_path, "fresh")
    assert [*ours.values()] == [*fresh.values()] and len(ours) == 3
    assert not list(tmp_path.glob("*.part"))


def test_a_column_that_is_missing_is_told_before_anything_is_read(qwen: Path, tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", ["a"])
    pyarrow.parquet.write_table(pyarrow.table({"other": ["x"]}), tmp_path / "b.parquet")
    progress: list[int] = []
    with pytest.raises(InputError, match=r"b.parquet has no column 'text'; its columns are: other"):
        tokenize(job_of(tmp_path / "[ab].*", qwen, tmp_path / "corpus"), on_progress=progress.append)
    assert progress == [] and not list(tmp_path.glob("corpus*"))
    with pytest.raises(InputError, match=r"b.parquet has no column 'messages'"):
        chat = {"conversations": True, "chat_template": tmp_path / "chat.jinja"}
        (tmp_path / "chat.jinja").write_text(CHAT)
        job = replace(job_of(tmp_path / "b.parquet", qwen, tmp_path / "corpus"), **chat)
        tokenize(replace(job, outputs={"messages": tmp_path / "corpus"}))
