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

from study import analysis, cells, commands, small, tables, texts  # it is no package of the project
from study.hypotheses import CLAIMS
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
    terms = {split: {frozenset(each.terms) for each in every} for split, every in found.items()}
    for one, other in combinations(terms.values(), 2):
        assert not one & other  # nor is one the other turned round
    assert {level: sum(each.level == level for each in found["test"]) for level in range(1, 5)} == dict.fromkeys(
        range(1, 5), 150
    )


def test_no_function_that_is_asked_about_is_trained_on() -> None:
    found = {split: {each.text: each.file for each in every} for split, every in texts.functions().items()}
    assert all(len(every) > 100 for every in found.values())
    for one, other in combinations(("format", "train", "tune", "test"), 2):
        assert not found[one].keys() & found[other].keys()
    for split in ("pretrain", "format", "train", "tune"):
        assert not set(found[split].values()) & set(found["test"].values())
    whole = "".join(found["pretrain"])
    assert sum(text in whole for text in found["test"]) < 0.02 * len(found["test"])  # some stand in two files


def test_an_interval_is_of_sources_drawn_whole() -> None:
    draw = random.Random(0)
    sources = np.array(sorted(draw.choices(range(30), k=200)))
    levels, values = np.array(draw.choices(range(3), k=200)), np.array([draw.gauss(0.2, 1) for _ in range(200)])
    by_source = {number: np.flatnonzero(sources == number) for number in set(sources.tolist())}
    means = []
    for _ in range(4000):
        rows = np.concatenate([by_source[number] for number in draw.choices(list(by_source), k=len(by_source))])
        means.append(np.mean([values[rows][levels[rows] == level].mean() for level in range(3)]))
    expected = np.quantile(means, (0.025, 0.975))
    found = analysis.paired_interval(values, analysis.Units(levels, sources))
    assert found == pytest.approx(expected, abs=0.03)
    alone = analysis.paired_interval(values, analysis.Units(levels, np.arange(200)))
    assert alone != pytest.approx(found, abs=0.003)  # positions taken for independent give another one


def write_cell(folder: Path, name: str, reasoned: str, more: dict[str, Any] | None = None, start: str = "a") -> None:
    asked = {"corpus": "c", "documents": "0 0 1 1", "positions": "1 2 1 2", "levels": "0101", "sources": "0 0 1 1"}
    asked |= {"reasoned": reasoned, "direct": "1111", "thought_tokens": "9 8 7 6", **(more or {})}
    cell = {"next_token": {"0": asked, "0.7": asked}, "format": start}
    (folder / f"{name}.json").write_text(json.dumps(cell))


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"more": {"positions": "1 2 1 3"}}, "cells were asked for different positions"),
        ({"start": "b"}, "cells began with different checkpoints"),
    ],
)
def test_cells_that_do_not_belong_together_are_no_table(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    write_cell(tmp_path, "format-0", "0110")
    write_cell(tmp_path, "rmt-0", "0110", **changed)
    with pytest.raises(ValueError, match=message):
        analysis.read_cells(tmp_path)


def test_a_gain_is_above_what_the_method_began_with(tmp_path: Path) -> None:
    """By hand: rmt's two seeds against format, rpt's against the same model asked freely; all of it by level."""
    for name, reasoned in (
        ("format-0", "0000"), ("format-free-0", "0011"), ("rmt-0", "1100"), ("rmt-1", "1110"), ("rpt-1", "0111"),
    ):  # fmt: skip
        write_cell(tmp_path, name, reasoned)
    found = analysis.read_cells(tmp_path)
    units = analysis.positions_of(found)
    of_rmt = analysis.estimate(analysis.gain(found, "rmt", "0.7"), units)
    assert of_rmt.seeds == (0.5, 0.75) and of_rmt.mean == 0.625
    assert analysis.at_level(analysis.gain(found, "rmt", "0.7"), units, 0).seeds == (0.5, 1.0)
    assert analysis.estimate(analysis.gain(found, "rpt", "0.7"), units).seeds == (0.25,)
    claims = {claim.text: claim.found(found) for claim in CLAIMS}
    between = claims["the gain in NTR of rmt is not below rpt's (sampled)"]
    assert between is not None and between.seeds == (0.5,)  # seed 1 alone has both: 0.75 - 0.25
    assert claims["NTP of rmt is above rmt-no-ntp's"] is None
    [*_, of_parts] = tables._what_parts_add(found)
    assert of_parts.startswith("| rpt | +50.0 (") and of_parts.count("+0.0 (+0.0 to +0.0)") == 2  # NTP, thoughts


@pytest.mark.parametrize(
    "text, low, high, holds",
    [
        ("NTR of rmt is above format's (sampled)", 0.001, 0.1, True),
        ("NTR of rmt is above format's (sampled)", -0.001, 0.1, False),
        ("NTP of rmt is not below ntp's", -0.019, 0.0, True),
        ("NTP of rmt is not below ntp's", -0.021, 0.1, False),
        ("thoughts of rmt are shorter than rpt's (sampled; tokens)", -2.0, -0.1, True),
        ("thoughts of rmt are shorter than rpt's (sampled; tokens)", -2.0, 0.1, False),
    ],
)
def test_a_claim_holds_for_all_of_its_interval(text: str, low: float, high: float, holds: bool) -> None:
    [claim] = [claim for claim in CLAIMS if claim.text == text]
    assert claim.holds(analysis.Estimate((low + high) / 2, low, high, ())) == holds


def test_an_answer_is_copied_where_the_thought_begins_with_it() -> None:
    for response, copied in (
        (" foo bar</think>\\boxed{ foo}", True), (" foo bar</think>\\boxed{ bar}", False), (" foo bar", False),
    ):  # fmt: skip
        assert cells._is_copied({"response": response}) == copied


def test_a_stopped_run_is_no_cell(tmp_path: Path) -> None:
    start = {
        "time": "",
        "step": 0,
        "command": "",
        "ranks": 1,
        "device": "cpu",
        "versions": {},
        "stages": [],
        "recipe": {},
    }
    starts = [json.dumps({**start, "num_steps": planned}) for planned in (3, 2)]
    (tmp_path / "starts.jsonl").write_text("\n".join(starts) + "\n")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    commands.exit_unless_done(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(SystemExit, match="was stopped after step 1 of 2"):
        commands.exit_unless_done(tmp_path)


LEVELS = {"quantiles": [0.02, 0.12, 0.3]}  # so small a model is sure of nothing


@pytest.fixture
def minutes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> cells.Setting:
    """The small model's grid, smaller."""
    monkeypatch.setattr(
        small,
        "MODEL",
        {**small.MODEL, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512},
    )
    code = {name: found[:24] for name, found in texts.functions().items()}
    code["pretrain"] = [each._replace(text=each.text[:2000]) for each in code["pretrain"]]
    numbers = {name: found[:: max(1, len(found) // 24)] for name, found in texts.sums().items()}
    monkeypatch.setattr(small, "functions", lambda: code)
    monkeypatch.setattr(small, "sums", lambda: numbers)
    monkeypatch.setattr(small, "FORMS", ("format",))
    monkeypatch.setattr(
        small,
        "SCALE",
        replace(
            small.SCALE, steps=2, documents=4, positions=1, longest_response=12, corpora=("train",), difficulty=LEVELS
        ),
    )
    monkeypatch.setattr(small, "POST", PostTraining(steps=1, problems=4, lr=1e-3, longest_response=12))
    return replace(small.setting(tmp_path / "work"), positions=4)


def test_the_grid_at_a_size_for_minutes(
    minutes: cells.Setting, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """From texts to tables; a cell whose result is there is not run again; none has a path of this machine."""
    results = tmp_path / "results" / "small"
    minutes.prepare()
    cells.run_post_training(minutes, "rmt", 0, results)  # trains what it starts from
    for method in ("format", "format-free", "rmt"):
        cells.run_cell(minutes, method, 0, results)
    written = {path.name: path.read_text() for path in results.iterdir()}
    assert sorted(written) == ["format-0.json", "format-free-0.json", "grpo-rmt-0.json", "rmt-0.json"]
    found: dict[str, Any] = json.loads(written["rmt-0.json"])
    asked = found["next_token"]["0.7"]
    assert set(asked["levels"]) == set("012") and len(asked["direct"]) == len(asked["documents"].split())
    assert len(asked["closed"]) == len(asked["positions"].split()) == len(asked["sources"].split())
    assert len(found["curves"]["thought_tokens"]) == 2 and found["training_seconds"] > 0
    assert found["corpora"].keys() == {"train"}
    assert all(str(tmp_path) not in text and str(Path.home()) not in text for text in written.values())
    shutil.rmtree(minutes.folder)
    cells.run_cell(minutes, "rmt", 0, results)  # nothing to do, and nothing to do it with
    grid = [("format", 0), ("format-free", 0), ("rmt", 0), ("rmt", 1), ("rpt", 0), ("grpo-rmt", 0)]
    text = tables.write_tables(tmp_path / "results", {"small": grid})
    assert "Cells: 4 of 6." in text and "| rmt |" in text and "Sums solved before and after GRPO" in text
    assert "NTP of rmt is above rpt's | no cell yet" in text and "rmt-no-ntp" not in text  # is in no cell of this grid
    assert (tmp_path / "results/small.png").stat().st_size > 10_000
