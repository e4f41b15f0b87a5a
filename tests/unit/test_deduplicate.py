"""Copies are left out as exact Jaccard says, whatever the files, the workers and the kills; nothing is lost."""

import json
import random
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from conftest import EFFORT

from data_prep import InputError
from data_prep.deduplicate.run import deduplicate
from data_prep.io.files import jsonl_writer, read_jsonl

THRESHOLD = 0.8


def write(folder: Path, records: list[dict[str, Any]], files: int) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-len(records) // files)
    for number in range(files):
        with jsonl_writer(folder / f"{number}.jsonl.zst") as writer:
            for record in records[number * size : (number + 1) * size]:
                writer.write(record)
    return [str(folder / "*.jsonl.zst")]


def documents(count: int, seed: int) -> list[dict[str, Any]]:
    """Texts of which half are copies of earlier ones with some words changed, and some are grown from a template."""
    draw = random.Random(seed)
    words = [f"w{number}" for number in range(5000)]
    template = draw.choices(words, k=40)
    texts: list[str] = []
    for _ in range(count):
        kind = draw.random()
        if texts and kind < 0.5:
            copied = draw.choice(texts).split()
            for _ in range(draw.choice([0, 0, 1, 1, 2, 4, 9])):
                copied[draw.randrange(len(copied))] = draw.choice(words)
            texts.append(" ".join(copied))
        elif kind < 0.65:
            texts.append(" ".join([*template, *draw.choices(words, k=draw.randrange(5, 60))]))
        else:
            texts.append(" ".join(draw.choices(words, k=draw.randrange(1, 120))))
    return [{"id": f"d{number}", "text": text, "n": number} for number, text in enumerate(texts)]


def by_exact_jaccard(texts: list[str]) -> list[int]:
    """The twin: the first text of each connected component of equal texts, and of texts that are alike enough."""
    shingles = [set(zip(*[re.findall(r"\w+|[^\w\s]", t.lower())[at:] for at in range(5)], strict=False)) for t in texts]
    holding, parents = defaultdict(list), list(range(len(texts)))

    def find(at: int) -> int:
        while parents[at] != at:
            at = parents[at]
        return at

    for number, own in enumerate(shingles):
        common: dict[int, int] = defaultdict(int)
        for shingle in own:
            for other in holding[shingle]:
                common[other] += 1
            holding[shingle].append(number)
        alike = [o for o, c in common.items() if c / (len(own) + len(shingles[o]) - c) >= THRESHOLD]
        for other in [*alike, texts.index(texts[number])]:
            first, later = sorted((find(other), find(number)))
            parents[later] = first
    return [find(number) for number in range(len(texts))]


def outcome(out: Path) -> tuple[list[str], dict[str, str]]:
    """Ids that were kept, and id -> id of the kept one for each that was dropped."""
    kept = [record["id"] for path in sorted((out / "kept").iterdir()) for record in read_jsonl(path)]
    dropped = [row for path in sorted((out / "dropped").iterdir()) for row in read_jsonl(path)]
    return kept, {row["id"]: row["kept"]["id"] for row in dropped}


@pytest.mark.parametrize("files, workers", [(1, 1), (3, 2)])
def test_of_2000_documents_what_is_dropped_is_what_exact_jaccard_says(tmp_path: Path, files: int, workers: int) -> None:
    records = documents(2000, seed=3)
    summary = deduplicate(write(tmp_path / "in", records, files), "text", tmp_path / "out", THRESHOLD, workers)
    assert summary is not None
    roots = by_exact_jaccard([record["text"] for record in records])
    expected = {f"d{number}": f"d{root}" for number, root in enumerate(roots) if number != root}
    kept, dropped = outcome(tmp_path / "out")
    assert dropped == expected and kept == [f"d{number}" for number, root in enumerate(roots) if number == root]
    assert len(expected) > 400 and summary["dropped"]["exact"] > 100 and summary["dropped"]["near"] > 100
    assert summary["records"] == 2000 == summary["kept"] + sum(summary["dropped"].values())
    assert not list(tmp_path.glob("out.*"))


def test_whole_records_are_kept_in_every_form_of_input(tmp_path: Path) -> None:
    rows = [{"id": 1, "doc": {"body": "a b c d e f g"}, "extra": [1, 2]}, {"id": 2, "doc": {"body": "a b c d e f g"}}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    lines = [{"doc": {"body": "A b c d  e f g"}}, {"doc": 3}, {"doc": {"body": ""}}, {"doc": {"body": ["", "b"]}}]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "no json\n")
    inputs = [str(tmp_path / "a.parquet"), str(tmp_path / "b.jsonl")]
    summary = deduplicate(inputs, "doc.body", tmp_path / "out", 1.0, 1)
    assert summary is not None and summary["broken_records"] == 2 and summary["dropped"] == {"exact": 1, "near": 1}
    kept = [record for path in sorted((tmp_path / "out" / "kept").iterdir()) for record in read_jsonl(path)]
    assert kept == [rows[0], lines[2], lines[3]]
    [near] = read_jsonl(tmp_path / "out" / "dropped" / "00001.jsonl.zst")
    assert near["id"] == "b.jsonl#1" and near["kept"]["id"] == "1" and near["kept"]["file"] == "a.parquet"


def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    inputs = write(tmp_path / "in", documents(3, 0), 1)
    for threshold in (0.5, 1.1):
        with pytest.raises(InputError, match=r"--threshold is .*; it must be from 0.7 to 1"):
            deduplicate(inputs, "text", tmp_path / "out", threshold, 1)
    pyarrow.parquet.write_table(pyarrow.table({"other": ["x"]}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"t.parquet has no column 'text'"):
        deduplicate([str(tmp_path / "t.parquet")], "text", tmp_path / "out", THRESHOLD, 1)
    assert not list(tmp_path.glob("out*"))
    deduplicate(inputs, "text", tmp_path / "out", THRESHOLD, 1)
    with pytest.raises(InputError, match="already exists"):
        deduplicate(inputs, "text", tmp_path / "out", THRESHOLD, 1)


def test_killed_it_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    inputs = write(tmp_path / "in", documents(6000, seed=1), 3)
    deduplicate(inputs, "text", tmp_path / "whole", THRESHOLD, 1)
    command = [sys.executable, "-m", "megatron_davinci", "data", "deduplicate", *inputs, "--out", str(tmp_path / "out")]
    draw = random.Random(EFFORT)
    kills = 0
    for _ in range(3 * EFFORT):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.8 + 1.2 * draw.random())
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    if not (tmp_path / "out").exists():
        ran = subprocess.run(command, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
    assert outcome(tmp_path / "out") == outcome(tmp_path / "whole") and kills
    assert (tmp_path / "out" / "summary.json").read_bytes() == (tmp_path / "whole" / "summary.json").read_bytes()


def test_what_datatrove_noted_of_an_output_that_is_gone_is_not_believed(tmp_path: Path) -> None:
    inputs = write(tmp_path / "in", documents(50, seed=1), 1)
    (tmp_path / "out.work" / "logs" / "digests" / "completions").mkdir(parents=True)
    (tmp_path / "out.work" / "logs" / "digests" / "completions" / "00000").touch()
    assert deduplicate(inputs, "text", tmp_path / "out", THRESHOLD, 1)


def test_memory_is_flat(tmp_path: Path) -> None:
    """Short documents, few and many: the largest process of all steps, each in a process of its own."""
    peaks = []
    for count in (20_000, 100_000 * EFFORT):
        with jsonl_writer(tmp_path / f"{count}" / "0.jsonl.zst"):
            pass
        draw = random.Random(count)
        size = count // 10
        for number in range(10):
            with jsonl_writer(tmp_path / f"{count}" / f"{number}.jsonl.zst") as writer:
                for at in range(size):
                    text = " ".join(str(draw.randrange(99999)) for _ in range(12))
                    writer.write({"id": f"{number}-{at}", "text": text})
        script = (
            "import sys, resource\nfrom pathlib import Path\nfrom data_prep.deduplicate.run import deduplicate\n"
            "deduplicate([sys.argv[1]], 'text', Path(sys.argv[2]), 0.8, 1)\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        arguments = [str(tmp_path / f"{count}" / "*.zst"), str(tmp_path / f"out{count}")]
        ran = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
        peaks.append(int(ran.stdout.split()[-1]) / 1024)
    assert peaks[1] - peaks[0] < 60 * max(1, EFFORT // 10), peaks
