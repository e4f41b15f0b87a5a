"""The page of an evaluation: its figures are those of results.json, and a damaged one is one sentence."""

from pathlib import Path
from typing import Any

import pytest

from data_prep import InputError
from data_prep.io.files import write_json
from megatron_davinci.report.write import write_report

ROW = {"right": 1, "answers": 4, "share": 0.25, "interval_95": [0.05, 0.7], "cut_by_length": 0, "timeout": 0,
       "error": 3, "unparsed": 0, "no_room": 0, "unjudged": 0}  # fmt: skip
DIFFERENCE = {"questions": 4, "difference": 0.25, "low": 0.0, "high": 0.5, "p_value": 0.125, "gained": 1, "lost": 0}


def evaluation(folder: Path, **changes: Any) -> Path:
    models = {
        name: {"rows": {"all": ROW, "too_short": {**ROW, "answers": 0, "share": None}}} for name in ("base", "mid")
    }
    task = {"title": "HumanEval", "models": models, "differences": {"mid": {"all": DIFFERENCE}}}
    write_json(
        folder / "results.json",
        {"base": "base", "models": {"base": {}, "mid": {}}, "tasks": {"humaneval": task}, **changes},
    )
    (folder / "answers").mkdir()
    line = '{"id": "HumanEval/%s", "status": "%s", "reason": "", "prompt": "def <f>", "answer": "%s"}\n'
    for model in ("base", "mid"):
        (folder / "scores" / model).mkdir(parents=True)
        lines = (
            line % (0, "right", "good") + line % (1, "wrong", "bad") + '{"id": "x", "status": "wrong", "reason": ""}\n'
        )
        (folder / "scores" / model / "humaneval.jsonl").write_text(lines)
    return folder


def test_figures_and_answers_are_on_the_page(tmp_path: Path) -> None:
    assert write_report([evaluation(tmp_path / "e")], tmp_path / "page.html", None, None) == []
    page = (tmp_path / "page.html").read_text()
    for text in (
        "25.0",
        "5.0 to 70.0",
        "0.125",
        "too short",
        "HumanEval/0, mid: right",
        "HumanEval/1, base: wrong",
        "def &lt;f&gt;",
    ):
        assert text in page, text
    assert "timeout" not in page.partition("<script")[0].partition("Benchmarks")[2]  # what never happened has no column


@pytest.mark.parametrize(
    "changes", [{"tasks": 1}, {"tasks": {"t": {}}}, {"models": {"m": {}}}, {"base": None, "tasks": {"t": 3}}]
)
def test_a_damaged_result_is_one_sentence(tmp_path: Path, changes: dict[str, Any]) -> None:
    faults = []
    try:
        faults = write_report([evaluation(tmp_path / "e", **changes)], tmp_path / "page.html", None, None)
    except InputError as error:
        faults = [str(error)]
    assert len(faults) == 1 and ("results.json" in faults[0] or "does not exist" in faults[0])
