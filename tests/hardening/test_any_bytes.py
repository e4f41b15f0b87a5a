"""Any bytes give every reader a sentence or something whole: a fuzzer, seconds here, minutes in the acceptance run."""

import json
import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from conftest import EFFORT, TINY, write_corpus

from data_prep import InputError
from data_prep.changes.shards import read_changes
from data_prep.corpus import Corpus
from data_prep.corpus.merge import merge_corpora
from data_prep.corpus.verify import verify_corpus
from data_prep.io.errors import WorkFailed
from data_prep.io.files import read_jsonl
from data_prep.tokenize import inputs
from data_prep.tokenize.encode import Encoding, parse
from data_prep.tokenizers import load_tokenizer
from megatron_davinci.config.file import load_recipe
from megatron_davinci.models.config import load_model_config
from megatron_davinci.report.metrics_file import read_metrics
from megatron_davinci.rl.inputs import read_stop_token_ids
from megatron_davinci.rl.rollout_files import read_rollouts
from megatron_davinci.weights.paths import latest_checkpoint

SECONDS = 1.5 * EFFORT**1.2  # of each reader
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 2**63, 2**64, 1e400, 0.5, "", "x", "\u0000", [], {}, [[]], {"a": []}, "9" * 400
)  # fmt: skip


def twisted(data: bytes, draw: random.Random) -> bytes:
    """Flipped, cut, doubled; JSON with a value of another type somewhere."""
    if draw.random() < 0.6:
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError:
            lines = data.split(b"\n")
            number = draw.randrange(len(lines))
            try:
                lines[number] = json.dumps(with_odd_value(orjson.loads(lines[number]), draw)).encode()
                return b"\n".join(lines)
            except orjson.JSONDecodeError:
                pass
        else:
            return json.dumps(with_odd_value(value, draw)).encode()
    changed = bytearray(data)
    for _ in range(draw.randrange(1, 4)):
        at = draw.randrange(len(changed) + 1)
        match draw.randrange(4):
            case 0 if at < len(changed):
                changed[at] ^= 1 << draw.randrange(8)
            case 1:
                del changed[at:]
            case 2:
                changed[at:at] = changed[at : at + draw.choice([1, 8, 64])]
            case 3:
                changed[at : at + 4] = draw.randbytes(4)
    return bytes(changed)


def with_odd_value(value: Any, draw: random.Random) -> Any:
    if isinstance(value, dict) and value and draw.random() < 0.8:
        key = draw.choice(sorted(value))
        if draw.random() < 0.1:
            return {name: each for name, each in value.items() if name != key}
        return {**value, key: with_odd_value(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.7:
        at = draw.randrange(len(value))
        return [*value[:at], with_odd_value(value[at], draw), *value[at + 1 :]]
    return draw.choice(ODD)


def read_all(path: Path) -> None:
    encoding = Encoding(("text",))
    for chunk in inputs.read(inputs.expand([str(path)]), encoding.columns):
        if broken := parse(chunk, encoding).broken:
            raise InputError(f"record {broken[0]}")


def packed(records: list[dict[str, Any]]) -> bytes:
    return zstandard.ZstdCompressor().compress(b"".join(orjson.dumps(each) + b"\n" for each in records))


def parquet(path: Path) -> bytes:
    table = pyarrow.table({"text": ["a", "bb", None] * 40, "n": list(range(120))})
    pyarrow.parquet.write_table(table, path, compression="zstd")
    return path.read_bytes()


CHANGE = {
    "format": 2, "repository": "a/b", "kind": "commit", "number": None, "title": "t", "body": "", "base": "0" * 40,
    "head": "1" * 40, "commits": [{"sha": "1" * 40, "message": "m", "author": "x", "authored_at": "", "files": [
        {"status": "M", "path": "a.py", "old_path": "a.py", "old_mode": "100644", "new_mode": "100644",
         "old_blob": "2" * 40, "new_blob": "3" * 40}]}],
    "blobs": {"2" * 40: {"text": "a\n"}, "3" * 40: {"text": "b\n"}},
}  # fmt: skip
ROLLOUTS = [
    {"format": 1, "step": 1, "policy_step": 0, "tokenizer": "x"},
    {"document": 0, "epoch": 0, "position": 1, "level": 0, "budget": 0, "prompt": "00",
     "responses": [{"tokens": [1, 2], "log_probs": [-0.1, -0.2], "finished": True}]},
]  # fmt: skip
LINES = b"".join(orjson.dumps({"text": "a" * n, "n": n}) + b"\n" for n in range(30))
METRICS = b"".join(orjson.dumps({"step": n, "loss": 1.5}) + b"\n" for n in range(1, 20))
TOKEN = {"id": 3, "content": "<e>", "special": True, "single_word": False, "lstrip": False, "rstrip": False}
TOKENIZER = {
    "version": "1.0",
    "added_tokens": [{**TOKEN, "normalized": False}],
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": None,
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "[UNK]": 2}, "unk_token": "[UNK]"},
}


def stops(path: Path) -> None:
    read_stop_token_ids(path.parent, 3)


def config(path: Path) -> None:
    load_model_config(str(path.parent))


# name of the file, its whole bytes, what reads it
READERS: list[tuple[str, Callable[[Path], bytes], Callable[[Path], Any]]] = [
    ("in.jsonl", lambda path: LINES, read_all),
    ("in.json", lambda path: b"[" + LINES.replace(b"\n", b",").rstrip(b",") + b"]", read_all),
    ("in.jsonl.zst", lambda path: zstandard.ZstdCompressor().compress(LINES), read_all),
    ("in.parquet", parquet, read_all),
    ("00000.jsonl.zst", lambda path: packed([CHANGE] * 3), lambda path: list(read_changes(path, lambda place: None))),
    ("plain.jsonl", lambda path: LINES, lambda path: list(read_jsonl(path))),
    ("metrics.jsonl", lambda path: METRICS, read_metrics),
    ("rollouts.jsonl.zst", lambda path: packed(ROLLOUTS), read_rollouts),
    ("config.json", lambda path: orjson.dumps(TINY), config),
    ("generation_config.json", lambda path: b'{"eos_token_id": [1, 2]}', stops),
    ("latest", lambda path: b"step_0000004\n", lambda path: latest_checkpoint(path.parent)),
    ("recipe.yaml", lambda path: b"model: x\nschedule: {lr: 1e-4, min_lr: 0}\n", lambda path: load_recipe(path, [])),
    ("tokenizer.json", lambda path: orjson.dumps(TOKENIZER), load_tokenizer),
]  # fmt: skip


@pytest.mark.parametrize("name, whole, read", READERS, ids=[name for name, *_ in READERS])
def test_any_bytes_are_a_sentence_or_something_whole(
    tmp_path: Path, name: str, whole: Callable[[Path], bytes], read: Callable[[Path], Any]
) -> None:
    draw, path = random.Random(name), tmp_path / name
    data = whole(path)
    refused = tries = 0
    end = time.monotonic() + (6 * SECONDS if name.endswith(".parquet") else SECONDS)  # each in a new process
    while time.monotonic() < end:
        path.write_bytes(twisted(data, draw))
        tries += 1
        try:
            read(path)
        except (InputError, WorkFailed) as error:
            refused += 1
            assert len(str(error)) < 3000
        except Exception as error:
            kept = Path("/tmp") / f"fuzz-{name}"
            kept.write_bytes(path.read_bytes())
            raise AssertionError(f"{type(error).__name__}: {error}, of the bytes in {kept}") from error
    assert tries > 5 and refused  # the planted damage was seen


@pytest.mark.parametrize("suffix", [".manifest.json", ".idx", ".bin"])
def test_any_bytes_of_a_corpus(tmp_path: Path, suffix: str) -> None:
    draw = random.Random(suffix)
    prefix = write_corpus(tmp_path / "corpus", [3, 1, 40, 7])
    file = prefix.with_name(prefix.name + suffix)
    whole = file.read_bytes()
    end = time.monotonic() + SECONDS
    number = 0
    while time.monotonic() < end:
        file.write_bytes(twisted(whole, draw))
        number += 1
        with suppress(InputError):
            verify_corpus(prefix)
        with suppress(InputError):
            merge_corpora([Corpus(prefix)], tmp_path / f"m{number}")
    assert number > 10
