"""Model cards and dataset cards say what is there, and stay files that the hub reads whatever a checkpoint holds."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from data_prep.samples.dataset_card import write_dataset_card
from data_prep.samples.statistics import Statistics, total
from megatron_davinci.weights.model_card import write_model_card

RECIPE: dict[str, Any] = {
    "init_from": "/cache/hub/models--Qwen--Qwen2.5-7B/snapshots/abc",
    "data": {"seq_length": 64, "stages": [{"name": "python", "blend": [{"corpus": "/home/me/corpus/py"}]}]},
    "batch": {"global_batch_size": 4, "unit": "samples"},
    "schedule": {"lr": 1e-5, "lr_decay_style": "cosine"},
}


def card_of(folder: Path, recipe: str, progress: bytes) -> tuple[dict[str, Any], str]:
    checkpoint = folder / "run" / "step_0000002"
    checkpoint.mkdir(parents=True)
    (checkpoint / "recipe.yaml").write_text(recipe)
    (checkpoint / "progress.json").write_bytes(progress)
    write_model_card(checkpoint, folder)
    _, head, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), text


def test_a_model_card_names_the_base_the_data_and_no_path_of_this_machine(tmp_path: Path) -> None:
    progress = orjson.dumps({"step": 2, "ledger": [{"tokens": 1000}, {"tokens": 234}]})
    head, text = card_of(tmp_path, yaml.safe_dump(RECIPE), progress)
    assert head["base_model"] == "Qwen/Qwen2.5-7B" and head["library_name"] == "transformers"
    assert "from Qwen/Qwen2.5-7B, 2 steps" in text and "| python | py | 64 |" in text and "1,234" in text
    assert "/home" not in text and "/cache" not in text and "run, step_0000002" in text


@pytest.mark.parametrize(
    "recipe, progress",
    [
        ("[1, 2]", b"{}"),
        ("a: [", b"{}"),
        ("a: 1", b"nonsense"),
        (yaml.safe_dump({"data": 3, "batch": [], "init_from": {"a": 1}}), b'{"ledger": 3}'),
        (
            yaml.safe_dump({**RECIPE, "data": {"stages": [3, {"blend": 3}, {"name": "a|b\n---\n# x", "blend": [4]}]}}),
            b"{}",
        ),
        (yaml.safe_dump({**RECIPE, "init_from": "models--a\nlicense: mit--b"}), b'{"ledger": [{"tokens": "9"}]}'),
    ],
)
def test_whatever_a_checkpoint_holds_the_card_is_one(tmp_path: Path, recipe: str, progress: bytes) -> None:
    head, text = card_of(tmp_path, recipe, progress)
    assert set(head) <= {"library_name", "pipeline_tag", "tags", "base_model"}
    assert text.count("\n# ") == 1 and "\n---\n" not in text


def test_counts_are_in_the_same_order_whatever_python_hashes() -> None:
    program = (
        "from data_prep.samples.statistics import total, _in_order\n"
        "from collections import Counter\n"
        "names = {f'.e{n}' for n in range(30)}\n"
        "c = Counter(names); print(list(_in_order(c)), list(_in_order(Counter({'10-19': 1, '2': 3, '1': 1}))))\n"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True,
            check=True,
        ).stdout
        for seed in "123"
    }  # fmt: skip
    assert len(said) == 1 and "['1', '2', '10-19']" in said.pop()


def test_a_dataset_card_counts_what_the_summary_counts(tmp_path: Path) -> None:
    statistics = Statistics(None)
    statistics.reject("no_python_file")
    summary = {"format": "python", **total([statistics.as_json()])}
    write_dataset_card(tmp_path, summary, pseudonyms=True)
    _, head, text = (tmp_path / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head)["configs"][0]["data_files"] == "samples/*.jsonl.zst"
    assert "| records | 1 |" in text and "| tokens | not counted |" in text and "no_python_file 1" in text
