"""What a report says of files: alarms, refusals, corpora, rollouts to read. The page itself: tests/browser."""

import json
from pathlib import Path
from typing import Any

import pytest
from run_files import write_run

from data_prep import InputError
from data_prep.io.files import jsonl_writer
from megatron_davinci.report.alarms import alarms_of
from megatron_davinci.report.blocks import PageSection
from megatron_davinci.report.page import render
from megatron_davinci.report.registries import RUN_SECTIONS
from megatron_davinci.report.run_data import MOST_POINTS, RunData
from megatron_davinci.report.show_rollouts import rollouts_as_lines, rollouts_as_text
from megatron_davinci.report.write import write_report, write_run_report

QUIET: dict[str, Any] = {"loss": 2.0, "grad_norm": 1.0, "seconds": 1.0, "padding_fraction": 0.01}


def run_of(lines: list[dict[str, Any]], folder: Path) -> RunData:
    folder.mkdir(exist_ok=True)
    numbered = [{"step": step, "stage": "s", **QUIET, **line} for step, line in enumerate(lines, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in numbered))
    return RunData.read(folder)


def wavy(metric: str, before: float, after: float, steps: int = 60) -> list[dict[str, Any]]:
    """A metric that goes from one value to another after two thirds."""
    return [{metric: before if step < 2 * steps / 3 else after} for step in range(steps)]


@pytest.mark.parametrize(
    ("name", "raised", "quiet"),
    [
        ("truncated_fraction", wavy("truncated_fraction", 0, 0.6), wavy("truncated_fraction", 0.9, 0.4)),
        ("zero_advantage_fraction", wavy("zero_advantage_fraction", 0, 0.9), wavy("zero_advantage_fraction", 1, 0.7)),
        ("policy_entropy", wavy("policy_entropy", 1, 0.09), wavy("policy_entropy", 1, 0.2)),
        ("rollout_log_prob_diff", wavy("rollout_log_prob_diff", 0, 0.06), wavy("rollout_log_prob_diff", 1, 0.01)),
        ("padding_fraction", [{"padding_fraction": 0.06}] * 20, [{"padding_fraction": 0.04}] * 20),
        ("loss", [{}] * 55 + [{"loss": 2.5}] + [{}] * 5, [{}] * 55 + [{"loss": 2.3}] + [{}] * 5),
        ("grad_norm", [{}] * 55 + [{"grad_norm": 9.0}], [{}] * 20 + [{"grad_norm": 9.0}] + [{}] * 40),
        ("skipped", [{}] * 5 + [{"skipped": 1, "loss": None}], [{}] * 6),
        (
            "slowest_over_median",
            [{"slowest_rank": 3, "slowest_over_median": 1.5}] * 20,
            [{"slowest_rank": step % 4, "slowest_over_median": 1.5} for step in range(20)],
        ),
    ],
)
def test_an_alarm_is_raised_and_is_not(
    tmp_path: Path, name: str, raised: list[dict[str, Any]], quiet: list[dict[str, Any]]
) -> None:
    [alarm] = alarms_of(run_of(raised, tmp_path / "raised"))
    assert alarm.name == name and alarm.remedy
    assert alarms_of(run_of(quiet, tmp_path / "quiet")) == []


def test_a_rank_that_lags_is_named(tmp_path: Path) -> None:
    [alarm] = alarms_of(run_of([{"slowest_rank": 3, "slowest_over_median": 1.5}] * 20, tmp_path / "run"))
    assert "rank 3 takes" in alarm.said


def test_a_run_that_is_not_over_says_how_far_it_is(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 40)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(lines[:30]) + "\n" + lines[30][:50])  # killed inside a line
    write_run_report(run)
    assert "After step 30 of 40" in (run / "report.html").read_text()


def test_a_long_run_is_no_larger(tmp_path: Path) -> None:
    sizes = []
    for steps in (MOST_POINTS, 3 * MOST_POINTS):
        run = write_run(tmp_path / str(steps), steps, every=steps)
        write_run_report(run)
        sizes.append((run / "report.html").stat().st_size)
    assert sizes[1] < 3 * sizes[0] and max(sizes) < 5e6


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("metrics.jsonl", "[1, 2]\n", "metrics.jsonl, line 1, is no object with a step"),
        ("metrics.jsonl", '{"step": "one"}\n', "metrics.jsonl, line 1, is no object with a step"),
        ("metrics.jsonl", "{\n", "has a damaged line"),
        ("evaluation.jsonl", '{"step": 3, "losses": {}}\n7\n', "evaluation.jsonl, line 2: the whole: Input should be"),
        ("scored_rollouts/step_0000040.jsonl.zst", "text", "step_0000040.jsonl.zst is cut off or damaged"),
        ("starts.jsonl", '{"step": 0}\n', "starts.jsonl, line 1: time: Field required; remove the line"),
        (
            "answers.jsonl",
            '{"step": 0, "prompt": "x"}\n',
            "answers.jsonl, line 1: prompt: Input should be a valid integer",
        ),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path: Path, file: str, content: str, said: str) -> None:
    run = write_run(tmp_path / "run", 40)
    (run / file).write_text(content)
    with pytest.raises(InputError, match=said.replace(".", r"\.")):
        write_report([run], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"responses": [{"text": "a"}]}, r"line 2, is no scored prompt \(responses.0.answer: Field required\)"),
        ({"position": "high"}, r"line 2, is no scored prompt \(position: .*integer"),
        ({"before": 7}, r"line 2, is no scored prompt \(before: .*string"),
    ],
)
def test_a_scored_prompt_of_another_form_is_one_sentence(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    run = write_run(tmp_path / "run", 40)
    line = json.loads(next(rollouts_as_lines(run, 40)))
    line.pop("step")
    path = run / "scored_rollouts" / "step_0000040.jsonl.zst"
    path.unlink()
    with jsonl_writer(path) as writer:
        writer.write({"format": 1, "step": 40, "stage": "s"})
        writer.write({**line, **change})
    with pytest.raises(InputError, match=said):
        rollouts_as_text(run, 40, 0)


def test_what_is_neither_run_nor_corpus_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty is no run that has begun \(no metrics.jsonl\), no PREFIX"):
        write_report([tmp_path / "empty"], tmp_path / "page.html")
    (tmp_path / "other.json").write_text('{"n": 13}')
    with pytest.raises(InputError, match=r"other.json is no .*tau: Field required"):
        write_report([tmp_path / "other.json"], tmp_path / "page.html")


def test_rollouts_to_read(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 40, text="four\x1b[31m five", name="docs")
    said = rollouts_as_text(run, None, 1)
    assert said.startswith("--- step 40: document 3 of docs, epoch 0, position 17, hard, budget 40\n")
    assert "response 1: answer four\\x1b[31m five, reward 1, correct 1, length reward 0.25, advantage 0.7" in said
    assert "truth: 'four" in said and "\x1b" not in said and "ended by itself" in said
    [line] = [json.loads(line) for line in rollouts_as_lines(run, 1)]
    assert line["step"] == 1 and line["responses"][0]["text"].startswith("four\x1b[31m five</think>")
    with pytest.raises(InputError, match="no scored rollouts of step 7: it has those of steps 1 to 40"):
        rollouts_as_text(run, 7, 0)
    with pytest.raises(InputError, match="has no scored rollouts: name the directory of a run with objective rmt"):
        rollouts_as_text(tmp_path, None, 0)


def test_a_section_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RUN_SECTIONS, "_members", dict(RUN_SECTIONS._members))
    RUN_SECTIONS.register("mine", lambda runs: PageSection(f"Of {len(runs)} runs") if len(runs) > 1 else None)
    runs = [write_run(tmp_path / name, 30) for name in ("a", "b")]
    write_report(runs, tmp_path / "both.html")
    write_report(runs[:1], tmp_path / "one.html")
    assert "<h3>Of 2 runs</h3>" in (tmp_path / "both.html").read_text()
    assert "<h3>Of" not in (tmp_path / "one.html").read_text()


def test_a_page_is_the_same_for_the_same_files(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 40)
    for name in ("one", "two"):
        write_report([run], tmp_path / name, title="x")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert render("empty", []).startswith("<!doctype html>")
