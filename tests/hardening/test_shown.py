"""Text of others is shown, and not sent; a narrow encoding loses characters, and not the command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_convert import write_weights

from data_prep.io.files import jsonl_writer

EVIL = "\x1b]0;owned\x07\x1b[2J"


def davinci(*arguments: str | Path, encoding: str = "utf-8") -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [sys.executable, "-m", "megatron_davinci", *map(str, arguments)],
        capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": encoding},
    )  # fmt: skip


def test_samples_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    with jsonl_writer(path) as writer:
        writer.write({"id": f"x{EVIL}", "text": f"one\n\ttwo{EVIL}", "meta": {f"k{EVIL}": EVIL}})
    done = davinci("data", "inspect", path)
    assert done.returncode == 0 and b"\x1b" not in done.stdout and b"\x07" not in done.stdout
    assert b"one\n\ttwo\\x1b]0;owned" in done.stdout


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_narrow_output_loses_characters_alone(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.jsonl.zst"
    with jsonl_writer(path) as writer:
        writer.write({"id": "x", "text": "⟦東京⟧ é"})
    done = davinci("data", "inspect", path, encoding=encoding)
    assert done.returncode == 0 and (b"\\u6771" in done.stdout or "東".encode() in done.stdout)


def test_names_in_errors_and_warnings_are_shown(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps({f"{EVIL}\nfake line": "x"}) + "\n")
    (tmp_path / "b.jsonl").write_text(json.dumps({"q": "question"}) + "\n")
    (tmp_path / f"odd{EVIL}.jsonl.zst").write_bytes(b"damaged")
    for arguments in (
        ("data", "inspect", tmp_path / f"odd{EVIL}.jsonl.zst"),
        ("data", "verify", tmp_path / f"odd{EVIL}"),
        ("report", tmp_path / f"none{EVIL}"),
    ):
        done = davinci(*arguments)
        assert done.returncode and b"\x1b" not in done.stderr + done.stdout and done.stderr.count(b"\n") == 1, done


def test_names_of_tensors_are_shown(tmp_path: Path) -> None:
    one, other = write_weights(tmp_path / "one"), write_weights(tmp_path / "other")
    path = other / "model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header[EVIL] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    packed = json.dumps(header).encode()
    path.write_bytes(len(packed).to_bytes(8, "little") + packed + data[8 + size :])
    done = davinci("convert", "verify", one, other)
    assert done.returncode and b"\x1b" not in done.stdout + done.stderr
