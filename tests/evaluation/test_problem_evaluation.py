"""Tests of `davinci eval problems`: what is counted is what the responses say, on any number of ranks."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked import Ended, run_davinci_on_ranks

from data_prep.io.files import read_jsonl
from megatron_davinci.demo.reinforce import toy_recipe
from megatron_davinci.demo.toy_language import BUDGET, TEMPLATE
from megatron_davinci.evaluate.tables import wilson_interval
from megatron_davinci.rl.problems import ProblemKeys, write_problems

DOORS = {"red": "three", "blue": "one", "green": "four", "white": "two"}


@pytest.fixture(scope="module")
def asked(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, and held-out problems of two difficulties: each colour's door, and a door that no colour has."""
    folder = tmp_path_factory.mktemp("problems")
    records = [{"problem": f" {colour} opens", "answer": door, "level": "right"} for colour, door in DOORS.items()]
    records += [{"problem": f" {colour} opens one", "answer": "seven", "level": "wrong"} for colour in DOORS]
    (folder / "p.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    write_problems([folder / "p.jsonl"], taught / "model", folder / "problems", ProblemKeys(difficulty="level"))
    values = toy_recipe(taught, 1, "grpo")
    taught_by = files("megatron_davinci.rl") / "template_files" / f"{TEMPLATE}.txt"
    (folder / "prompt.txt").write_text(taught_by.read_text().replace("{budget}", str(BUDGET)))
    values["objective"] = {"kind": "grpo", "max_tokens": 12, "template": "prompt.txt", "stop_at_answer": True}
    trained = [records[-1], {"problem": " white opens two", "answer": "seven", "level": "wrong"}]
    (folder / "t.jsonl").write_text("".join(json.dumps(record) + "\n" for record in trained))
    write_problems([folder / "t.jsonl"], taught / "model", folder / "trained", ProblemKeys(difficulty="level"))
    values["data"]["stages"][0]["blend"] = [{"corpus": str(folder / "trained")}]
    (folder / "grpo.yaml").write_text(yaml.safe_dump(values))
    return folder


def evaluate(folder: Path, out: Path, *more: str, ranks: int = 1, corpus: Path | None = None) -> Ended:
    given = ["--corpus", corpus or folder / "problems", "--out", out, *more]
    return run_davinci_on_ranks(ranks, "eval", "problems", folder / "grpo.yaml", *given)


def test_what_is_counted_is_what_the_responses_say(asked: Path, taught: Path, tmp_path: Path) -> None:
    models = ("--model", f"one={taught / 'hf'}", "--model", f"two={taught / 'form'}", "--batch", "3")
    done = evaluate(asked, tmp_path / "out", *models)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert (tmp_path / "out/tables.md").read_text().strip() == done.stdout.strip()
    for name in ("one", "two"):
        lines: list[dict[str, Any]] = list(read_jsonl(tmp_path / "out" / f"{name}.jsonl.zst"))
        assert [line["document"] for line in lines] == list(range(7))  # the eighth is trained on
        assert any(line["closed"] for line in lines)
        for line in lines:
            box = line["response"].partition("\\boxed{")[2].partition("}")[0].strip()
            assert line["answer"] == (box or None) or not line["closed"]
            truth = [*DOORS.values(), *["seven"] * 4][line["document"]]
            assert line["correct"] == (line["answer"] == truth)
        found = results["models"][name]["accuracy"]
        for level, count in (("right", 4), ("wrong", 3)):
            right = sum(line["correct"] for line in lines if line["difficulty"] == level)
            assert found[level] == {
                "count": count, "correct": right, "accuracy": right / count,
                "interval_95": list(wilson_interval(right, count)),
            }  # fmt: skip
        assert found["all"]["count"] == 7 and found["wrong"]["correct"] == 0
        assert results["models"][name]["response_tokens"] == sum(line["tokens"] for line in lines) / 7
    again = evaluate(asked, tmp_path / "ranks", *models, ranks=2)
    assert again.returncode == 0, again.stderr
    for name in ("one", "two"):
        one, two = (list(read_jsonl(tmp_path / run / f"{name}.jsonl.zst")) for run in ("out", "ranks"))
        assert one == two


def test_what_does_not_fit_is_refused(asked: Path, taught: Path, tmp_path: Path) -> None:
    model = ("--model", f"one={taught / 'hf'}")
    rmt = {**yaml.safe_load((asked / "grpo.yaml").read_text()), "objective": {"kind": "ntp"}}
    (tmp_path / "grpo.yaml").write_text(yaml.safe_dump(rmt))
    refused = evaluate(tmp_path, tmp_path / "out", *model, corpus=asked / "problems")
    assert (
        refused.returncode == 2 and "no stage with objective grpo, which says how problems are asked" in refused.stderr
    )
    long = evaluate(asked, tmp_path / "out", *model, "objective.max_tokens=500")
    assert long.returncode == 2 and "and a response of 500 exceed seq_length 512: raise it, or lower" in long.stderr
    assert not (tmp_path / "out").exists()
