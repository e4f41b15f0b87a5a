"""What a report says of files: alarms, refusals, corpora, rollouts to read. The page itself: tests/browser."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import write_corpus
from page_twin import check_numbers, read_page
from run_files import write_run

from data_prep import InputError
from data_prep.io.files import jsonl_writer
from megatron_davinci.report.alarms import alarms_of
from megatron_davinci.report.blocks import PageSection, Prompt
from megatron_davinci.report.curriculum_curves import budget_curves, mix_curves
from megatron_davinci.report.page import render
from megatron_davinci.report.plan_section import run_plan
from megatron_davinci.report.read_sections import run_answers
from megatron_davinci.report.registries import RUN_SECTIONS
from megatron_davinci.report.run_data import MOST_POINTS, RunData
from megatron_davinci.report.show_rollouts import rollouts_as_lines, rollouts_as_text
from megatron_davinci.report.write import default_report_file, write_report, write_run_report

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
    assert "is the time of rank 3" in alarm.said


def test_a_run_that_is_not_over_says_how_far_it_is(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 40)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(lines[:30]) + "\n" + lines[30][:50])  # killed inside a line
    write_run_report(run)
    assert "After step 30 of 40" in (run / "report.html").read_text()


def test_a_longer_run_is_no_larger(tmp_path: Path) -> None:
    sizes = []
    for steps in (2 * MOST_POINTS, 6 * MOST_POINTS):
        run = write_run(tmp_path / str(steps), steps, every=steps)
        write_run_report(run)
        sizes.append((run / "report.html").stat().st_size)
    assert sizes[1] < 1.1 * sizes[0] and max(sizes) < 5e6


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("metrics.jsonl", "[1, 2]\n", "metrics.jsonl, line 1, is no JSON object with a step"),
        ("metrics.jsonl", '{"step": "one"}\n', "metrics.jsonl, line 1, is no JSON object with a step"),
        ("metrics.jsonl", '{"step": 1}\n{\n', "metrics.jsonl, line 2, is no JSON object with a step"),
        ("metrics.jsonl", '{"step": 3}\n{"step": 3}\n', "line 2: step 3 comes after step 3, and steps must rise"),
        ("evaluation.jsonl", '{"step": 3, "losses": {}}\n7\n', "evaluation.jsonl, line 2, is no JSON object"),
        (
            "evaluation.jsonl",
            '{"step": 3, "losses": {"a": "inf"}}\n',
            "line 1: losses.a: Input should be a valid number",
        ),
        ("starts.jsonl", '{"step": 0}\n', "starts.jsonl, line 1: time: Field required; remove the line"),
        ("answers.jsonl", '{"step": 0, "prompt": "x"}\n', "answers.jsonl, line 1: stage: Field required"),
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
    with pytest.raises(InputError, match=r"other.json is no report of leakage \(tau: Field required\)"):
        write_report([tmp_path / "other.json"], tmp_path / "page.html")


def test_rollouts_to_read(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 40, text="four\x1b[31m five", name="docs")
    said = rollouts_as_text(run, None, 1)
    assert said.startswith("--- step 40: document 3 of docs, epoch 0, position 17, hard, budget 40\n")
    assert "response 1: answer four\\x1b[31m five, reward 1, correct 1, length reward 0.25, advantage 0.7" in said
    assert "\n  truth: four\\x1b[31m five\n" in said and "\n    | four\\x1b[31m five</think>" in said
    assert "\x1b" not in said and "ended by itself" in said
    [line] = [json.loads(line) for line in rollouts_as_lines(run, 1)]
    assert line["step"] == 1 and line["responses"][0]["text"].startswith("four\x1b[31m five</think>")
    with pytest.raises(InputError, match="no scored rollouts of step 7: it has those of 2 steps from 1 to 40"):
        rollouts_as_text(run, 7, 0)
    with pytest.raises(InputError, match="has no scored rollouts: name the directory of a run with objective rmt"):
        rollouts_as_text(tmp_path, None, 0)


@pytest.mark.parametrize("name", ["evaluation.jsonl", "answers.jsonl", "starts.jsonl"])
def test_what_is_no_regular_file_is_not_taken_for_none(tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "run", 40)
    (run / name).unlink()
    write_report([run], tmp_path / "page.html")  # none is none
    for place in ("missing", "/dev/null"):
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(place)
        with pytest.raises(InputError, match=f"{name} (cannot be read|is no regular file)"):
            write_report([run], tmp_path / "page.html")


def test_a_section_that_cannot_be_made_leaves_the_others(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 40)
    (run / "scored_rollouts" / "step_0000040.jsonl.zst").write_text("text")
    [fault] = write_report([run], tmp_path / "page.html")
    assert "section rollouts: " in fault and "step_0000040.jsonl.zst is cut off or damaged" in fault
    page = (tmp_path / "page.html").read_text()
    assert "This section could not be made: " in page and "Recipe, versions, command" in page


STRANGE: list[Any] = ["text", "nan", True, False, None, [1], {"a": 1}, {"a": "b"}, 1e308, -1e308, 10**400, -1, 0, ""]
METRICS = ["loss", "losses", "seconds", "reward", "consumed_tokens", "slowest_rank", "skipped", "own"]


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_of_any_kind_is_a_page_or_one_sentence(tmp_path: Path, metric: str) -> None:
    for number, value in enumerate(STRANGE):
        run = write_run(tmp_path / str(number), 60)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for line in lines[number % 3 :: 2]:
            line[metric] = value
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        try:
            assert write_report([run], tmp_path / f"{number}.html") == [], value
            assert 'value="null"' not in (tmp_path / f"{number}.html").read_text(), value
        except InputError as error:  # JSON's own reader takes no such number
            assert "is no JSON object with a step" in str(error) and value == 10**400, value


@pytest.mark.parametrize("key", ["recipe", "stages", "ranks", "versions", "num_steps"])
def test_a_start_of_any_kind_is_a_page_or_one_sentence(tmp_path: Path, key: str) -> None:
    run = write_run(tmp_path / "run", 40)
    start = json.loads((run / "starts.jsonl").read_text())
    recipes = [{"data": None}, {"data": {"stages": [1]}}, {"data": {"stages": [{"objective": 1}]}}]
    for value in [*STRANGE[:8], 10**9, *recipes]:
        (run / "starts.jsonl").write_text(json.dumps({**start, key: value}) + "\n")
        try:
            assert write_report([run], tmp_path / "page.html") == [], value
        except InputError as error:
            assert f"starts.jsonl, line 1: {key}" in str(error), value


def test_a_plan_of_a_billion_steps_costs_no_more(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 40)
    start = json.loads((run / "starts.jsonl").read_text())
    start["stages"][0]["steps"] = start["num_steps"] = 10**9
    (run / "starts.jsonl").write_text(json.dumps(start) + "\n")
    write_report([run], tmp_path / "page.html")
    assert "After step 40 of 1000000000" in (tmp_path / "page.html").read_text()


def test_a_page_takes_the_place_of_a_page_alone(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 40)
    write_report([run], tmp_path / "page.html")
    (tmp_path / "link.html").symlink_to("page.html")
    write_report([run], tmp_path / "link.html", title="through a link")
    assert (tmp_path / "link.html").is_symlink() and "through a link" in (tmp_path / "page.html").read_text()
    os.mkfifo(tmp_path / "pipe")
    metrics = (run / "metrics.jsonl").read_bytes()
    for out in (run / "metrics.jsonl", tmp_path, tmp_path / "pipe"):
        with pytest.raises(InputError, match="is there, and is no report: name another file with --out"):
            write_report([run], out)
    assert (run / "metrics.jsonl").read_bytes() == metrics and (tmp_path / "pipe").is_fifo()
    for out in (tmp_path / ("x" * 300), run / "metrics.jsonl" / "page.html"):
        with pytest.raises(InputError, match=r"cannot be written \(.*\): name another file with --out"):
            write_report([run], out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.html", "page.html", "pipe", "run"]


def test_runs_that_are_given_badly(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 40)
    (tmp_path / "same").symlink_to("run")
    with pytest.raises(InputError, match="one of them is given twice"):
        write_report([run, tmp_path / "same"], tmp_path / "page.html")
    with pytest.raises(InputError, match="2 paths make one page: say where it goes with --out FILE"):
        default_report_file([run, tmp_path / "other"])
    with pytest.raises(InputError, match="--tokenizer x shows documents of a PREFIX, and none is given"):
        write_report([run], tmp_path / "page.html", Path("x"))
    for path in (Path("/"), Path()):
        with pytest.raises(InputError, match="is no run that has begun"):
            write_report([path], tmp_path / "page.html")


def test_stages_are_looked_at_one_by_one(tmp_path: Path) -> None:
    """Another stage has other losses and gradients: that is no spike; one inside a stage is, whatever came before."""
    lines: list[dict[str, Any]] = [{"stage": "docs", "grad_norm": 0.1}] * 60
    lines += [{"stage": "rl", "reward": 0.5, "loss": -3.0 if step % 2 else 5.0} for step in range(60)]
    assert alarms_of(run_of(lines, tmp_path / "quiet")) == []
    later = [{"stage": "more", "loss": 9.0 if step == 55 else 3.0} for step in range(60)]
    [alarm] = alarms_of(run_of([*lines, *later], tmp_path / "spike"))
    assert alarm.name == "loss" and alarm.value.text == "1" and alarm.said.startswith("spike, at step 176: ")


@pytest.mark.parametrize("steps", [90, 2 * MOST_POINTS + 70])
def test_the_ideal_lines_are_those_of_the_stages(tmp_path: Path, steps: int) -> None:
    """Eq. 1, 3 and 4, worked out anew, of a stage that begins after another, and over buckets of a long run."""
    run = write_run(tmp_path / "run", steps, every=steps)
    start = json.loads((run / "starts.jsonl").read_text())
    start["stages"] = [
        {"name": "first", "objective": "ntp", "first_step": 0, "steps": 20},
        {"name": "second", "objective": "rmt", "first_step": 20, "steps": steps - 20},
    ]
    start["recipe"]["data"]["stages"] = [{"objective": {"kind": "ntp"}}, {"objective": None}]
    (run / "starts.jsonl").write_text(json.dumps(start) + "\n")
    found = RunData.read(run)
    curves = {curve.label: curve for curve in [*budget_curves(found, ""), *mix_curves(found, "")]}
    length, width = steps - 20, -(-steps // MOST_POINTS)
    taus = [min(1.0, max(0.0, (step - 0.3 * length) / (0.4 * length))) for step in range(length)]
    ideals = {
        "Eq. 1": [max(1, int(40 * 0.2 ** (step / length))) for step in range(length)],
        "hard, Eq. 3": [0.1 * (1 - tau) + 0.6 * tau for tau in taus],
    }
    for label, ideal in ideals.items():
        every: list[Any] = [None] * 20 + ideal
        groups = [[v for v in every[at : at + width] if v is not None] for at in range(0, steps, width)]
        assert curves[label].dashed
        for ours, group in zip(curves[label].mean, groups, strict=True):
            assert ours == (pytest.approx(sum(group) / len(group), rel=1e-6) if group else None)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = [f"positions_{level}" for level in ("easy", "medium", "hard")]
    shares = [line["positions_easy"] / sum(line[name] for name in names) for line in lines]
    easy = [sum(shares[at : at + width]) / len(shares[at : at + width]) for at in range(0, steps, width)]
    assert curves["easy"].mean == pytest.approx(easy, rel=1e-6)


def test_hours_times_ranks_follow_a_run_that_went_back(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 10)
    lines = [{**json.loads(line), "seconds": 3600} for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    start = json.loads((run / "starts.jsonl").read_text())
    starts = [{**start, "step": step, "ranks": ranks} for step, ranks in ((0, 1), (8, 2), (4, 4))]
    (run / "starts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in starts))
    write_report([run], tmp_path / "page.html")
    hours = next(value for value, source, _ in read_page(tmp_path / "page.html")[0] if "times ranks" in source)
    assert hours == 4 * 1 + 6 * 4


def test_answers_of_two_stages_are_told_apart(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 40)
    lines = [
        {"step": step, "stage": stage, "prompt": 0, "where": stage, "before": f"{stage} before", "truth": None,
         "text": f"{stage} says", "finished": stage == "one"}
        for step, stage in ((0, "one"), (20, "one"), (40, "two"))
    ]  # fmt: skip
    (run / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    section = run_answers([RunData.read(run)])
    assert section is not None
    one, two = [block for block in section.blocks if isinstance(block, Prompt)]
    assert (one.before, [reply.rest for reply in one.replies]) == ("one before", ["one says"] * 2)
    assert (two.before, [reply.title for reply in two.replies]) == ("two before", ["after step 40 (cut off)"])


def test_conversations_and_what_deduplication_left(tmp_path: Path) -> None:
    for name, summary in {
        "talks": {
            "files": 1, "trajectories": 5, "rollouts": {"failing": 1, "passing": 2}, "rejected": {"no messages": 2},
            "replies": 9, "untrained_replies": 1, "tokens": {"failing": 100, "passing": 250},
        },
        "unique": {"records": 7, "kept": 4, "dropped": {"exact": 2, "near": 1}, "broken_records": 0, "threshold": 0.8},
    }.items():  # fmt: skip
        (tmp_path / name / "kept").mkdir(parents=True)
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))
    with jsonl_writer(tmp_path / "talks" / "passing.jsonl.zst") as writer:
        writer.write({"id": "t", "messages": [{"role": "assistant", "content": "I look at it"}]})
    with jsonl_writer(tmp_path / "unique" / "kept" / "00000.jsonl.zst") as writer:
        writer.write({"id": "u", "text": "the one that stays"})
    paths = {name: tmp_path / name for name in ("talks", "unique")}
    assert write_report(list(paths.values()), tmp_path / "page.html") == []
    page = (tmp_path / "page.html").read_text()
    for said in ("I look at it", "the one that stays", "talks: trajectories", "unique: kept", "unique: dropped"):
        assert said in page, said
    assert check_numbers(tmp_path / "page.html", paths) == 13


def test_a_corpus_with_all_that_belongs_to_it(tmp_path: Path) -> None:
    write_corpus(tmp_path / "py", [5, 64, 200], masks=[[1] * 5, [0] * 64, [1, 0] * 100])
    (tmp_path / "samples").mkdir()
    summary = {
        "records": 50, "changes": 30, "samples": 28, "tokens": 900, "max_tokens": 512, "share_too_long": 0.25,
        "rejected": {f"reason {number}": number + 1 for number in range(30)}, "languages": {"Python": 28},
        "lengths": [{"from": 16, "to": 31, "documents": 28, "tokens": 900}],
        "collected": {"kinds": {"merge": 40}, "skipped": {"root_commit": 1}},
    }  # fmt: skip
    (tmp_path / "samples" / "summary.json").write_text(json.dumps(summary))
    instance = {"benchmark": "b", "worst_document": {"corpus": "py", "document": 2}}
    report = {
        "n": 13, "tau": 0.1, "benchmarks": [{"file": "b", "instances": 4, "contaminated": 2, "too_short": 0}],
        "instances": [
            {**instance, "id": "worst", "score": 0.9, "contaminated": True, "span": {"text": "the shared text"}},
            {**instance, "id": "without text", "score": 0.5, "contaminated": True, "span": None},
            {**instance, "id": "near", "score": 0.06, "contaminated": False, "span": {"text": "nearly"}},
            {**instance, "id": "far", "score": 0.01, "contaminated": False, "span": {"text": "chance"}},
        ],
    }  # fmt: skip
    (tmp_path / "leakage.json").write_text(json.dumps(report))
    paths = {name: tmp_path / name for name in ("py", "samples", "leakage.json")}
    assert write_report(list(paths.values()), tmp_path / "page.html") == []
    page = (tmp_path / "page.html").read_text()
    assert check_numbers(tmp_path / "page.html", paths) > 45
    for said in (
        "highest scores: worst, score 0.900, document 2 of py",
        "the shared text",
        "highest scores: without text",
        "near misses: near, score 0.060",
        "5 others",
        "root_commit",
        "merge",
        "--tokenizer DIRECTORY",
    ):
        assert said in page, said
    assert "far, score" not in page


def test_a_report_needs_no_torch(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 40)
    start = "import sys; sys.modules['torch'] = None; from megatron_davinci.cli import main; sys.argv = ['davinci', "
    for command in (["report"], ["rmt", "show"]):
        program = start + f"*{[*command, str(run)]!r}]; main()"
        subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
    assert (run / "report.html").is_file()


def test_others_text_forges_no_line(tmp_path: Path) -> None:
    text = "x\n--- step 9: forged\n  response 7: reward 9\t\x9b"
    run = write_run(tmp_path / "run", 40, text=text, name="a\nb")
    said = rollouts_as_text(run, None, 0)
    assert len([line for line in said.split("\n") if line.startswith("--- ")]) == 1
    assert "of a\\nb, epoch" in said and "\n  response 7" not in said and "    |   response 7: reward 9" in said
    assert all(line.isascii() for line in rollouts_as_lines(run, 40))


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


def test_a_plan_is_laid_beside_what_was_measured(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_of([{"tokens_per_second": 512_000.0, "peak_memory_bytes": 60 << 30, "seconds": 12.0}] * 3, run)
    own = {"step_seconds": 11.0, "tokens_per_second_per_gpu": 1100.0, "peak_gib": 58.0}
    plan = {"gpus": 512, "gpu": "h100", "time_error": {"median": 0.08, "worst": 0.6}, "memory_error": 0.06,
            "stages": [{"name": "s", "own": own}, {"name": "later", "own": own}]}  # fmt: skip
    (run / "plan.json").write_text(json.dumps(plan))
    section = run_plan([RunData.read(run)])
    assert section is not None
    _, table = section.blocks
    shown = [[cell if isinstance(cell, str) else cell.text for cell in row] for row in table.rows]
    assert shown == [["s", "predicted", "11", "1,100", "58.0"], ["s", "measured", "12", "1,000", "60.0"],
                     ["later", "predicted", "11", "1,100", "58.0"]]  # fmt: skip
    write_run_report(run)
    assert "planned for 512 h100" in (run / "report.html").read_text()
    (run / "plan.json").write_text(json.dumps({"gpus": 3}))
    with pytest.raises(InputError, match=r"plan\.json is no plan of davinci"):
        run_plan([RunData.read(run)])
    (run / "plan.json").unlink()
    assert run_plan([RunData.read(run)]) is None
