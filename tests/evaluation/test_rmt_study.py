"""Tests of the study of reinforcement mid-training: its texts, its intervals, and all of it at a size for minutes."""

import json
import random
import shutil
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from study import cells, small, tables, texts  # it is no package of the project
from study.recipes import PostTraining


def test_sums_are_right_and_none_is_in_two_splits() -> None:
    found = texts.sums()
    for each in (each for split in found.values() for each in split):
        assert int(each.answer) == sum(each.terms)
        for line in each.steps.splitlines():
            terms, _, total = line.partition(" = ")
            assert sum(map(int, terms.split(" + "))) == int(total)
        asked = each.question.removeprefix("# ").removesuffix("\n")
        assert each.steps.splitlines()[-1] == f"{asked} = {each.answer}"
    for one, other in combinations(found.values(), 2):
        assert not set(one) & set(other)
    assert {level: sum(each.level == level for each in found["test"]) for level in range(1, 5)} == dict.fromkeys(
        range(1, 5), 150
    )


def test_no_function_that_is_asked_about_is_trained_on() -> None:
    found = texts.functions()
    assert all(len(found[split]) > 100 for split in found)
    for one, other in combinations(("format", "train", "tune", "test"), 2):
        assert not set(found[one]) & set(found[other])
    whole = "".join(found["pretrain"])
    assert sum(text in whole for text in found["test"]) < 0.02 * len(found["test"])  # some stand in two files


def test_an_interval_is_of_documents_drawn_whole() -> None:
    draw = random.Random(0)
    documents = np.array(sorted(draw.choices(range(30), k=200)))
    levels, values = np.array(draw.choices(range(3), k=200)), np.array([draw.gauss(0.2, 1) for _ in range(200)])
    by_document = {number: np.flatnonzero(documents == number) for number in set(documents.tolist())}
    means = []
    for _ in range(4000):
        rows = np.concatenate([by_document[number] for number in draw.choices(list(by_document), k=len(by_document))])
        means.append(np.mean([values[rows][levels[rows] == level].mean() for level in range(3)]))
    expected = np.quantile(means, (0.025, 0.975))
    found = tables.paired_interval(values, levels, documents)
    assert found == pytest.approx(expected, abs=0.03)
    alone = tables.paired_interval(values, levels, np.arange(200))
    assert alone != pytest.approx(found, abs=0.003)  # positions taken for independent give another one


def test_cells_that_were_asked_for_other_positions_are_no_table(tmp_path: Path) -> None:
    for name, levels in (("format-0", "012"), ("rmt-0", "010")):
        asked = {"corpus": "a", "documents": "0 0 1", "levels": levels}
        (tmp_path / f"{name}.json").write_text(json.dumps({"next_token": {"0": asked}}))
    with pytest.raises(ValueError, match="cells were asked for different positions"):
        tables.read_cells(tmp_path)


@pytest.fixture
def minutes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> cells.Setting:
    """The small model's grid, smaller."""
    monkeypatch.setattr(
        small,
        "MODEL",
        {**small.MODEL, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512},
    )
    code = {name: found[:24] for name, found in texts.functions().items()}
    code["pretrain"] = [text[:2000] for text in code["pretrain"]]
    numbers = {name: found[:: max(1, len(found) // 24)] for name, found in texts.sums().items()}
    monkeypatch.setattr(small, "functions", lambda: code)
    monkeypatch.setattr(small, "sums", lambda: numbers)
    monkeypatch.setattr(
        small, "SCALE", replace(small.SCALE, steps=2, documents=4, longest_response=12, corpora=("train",))
    )
    monkeypatch.setattr(small, "POST", PostTraining(steps=1, problems=4, lr=1e-3, longest_response=12))
    return replace(small.setting(tmp_path / "work"), positions=4)


def test_the_grid_at_a_size_for_minutes(
    minutes: cells.Setting, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """From texts to tables; a cell whose result is there is not run again; none has a path of this machine."""
    results = tmp_path / "results" / "small"
    minutes.prepare()
    for method in ("format", "rmt"):
        cells.run_cell(minutes, method, 0, results)
    cells.run_post_training(minutes, "rmt", 0, results)
    written = {path.name: path.read_text() for path in results.iterdir()}
    assert sorted(written) == ["format-0.json", "grpo-rmt-0.json", "rmt-0.json"]
    found: dict[str, Any] = json.loads(written["rmt-0.json"])
    asked = found["next_token"]["0.7"]
    assert set(asked["levels"]) == set("012") and len(asked["direct"]) == len(asked["documents"].split())
    assert len(found["curves"]["thought_tokens"]) == 2 and found["time"]["cpu_seconds"] > 0
    assert all(str(tmp_path) not in text and str(Path.home()) not in text for text in written.values())
    shutil.rmtree(minutes.folder)
    cells.run_cell(minutes, "rmt", 0, results)  # nothing to do, and nothing to do it with
    text = tables.write_tables(tmp_path / "results")
    assert "| rmt |" in text and "Problems solved before and after GRPO" in text
    assert (tmp_path / "results/small.png").stat().st_size > 10_000
