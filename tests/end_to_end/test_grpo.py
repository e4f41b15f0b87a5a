"""Properties of reinforcement by problems with answers, held near a reference model, as a user starts it."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import EFFORT
from forked import run_davinci
from language import write_recipe
from training import kill_after, reported, same_weights, start, train

from data_prep.corpus import Corpus
from megatron_davinci.demo.reinforce import toy_recipe
from megatron_davinci.rl.answers import read_response
from megatron_davinci.rl.rollout_files import Group, read_rollouts, rollout_file, write_rollouts
from megatron_davinci.rl.token_bytes import TokenBytes

STEPS = 3
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "DP2": (2, {"use_distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True}),
    "TP2+SP": (2, {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
    "PP2": (2, {"pipeline_model_parallel_size": 2}),
}
Write = Callable[..., Path]


@pytest.fixture
def write(taught: Path, tmp_path: Path) -> Write:
    """Writes the recipe of a run NAME, with changes to its objective and layout."""

    def write(name: str, objective: dict[str, Any] | None = None, megatron: dict[str, Any] | None = None) -> Path:
        values = toy_recipe(taught, STEPS, name)
        values["data"]["stages"][0]["blend"] = [{"corpus": str(taught / "problems")}]
        values["objective"] = {"kind": "grpo", "template": "suffix_free_1", "max_tokens": 12, "kl_beta": 0.05}
        return write_recipe(tmp_path, name, values, objective=objective or {}, megatron=megatron or {})

    return write


def files_of(run: Path) -> list[list[Group]]:
    return [read_rollouts(rollout_file(run / "rollouts", step))[1] for step in range(STEPS)]


def test_verdicts_and_reference_are_those_of_the_responses(write: Write, taught: Path, tmp_path: Path) -> None:
    train(write("one"), 1)
    steps, texts = files_of(tmp_path / "one"), TokenBytes(taught / "hf")
    toy_language = {" red": b"three", " blue": b"one", " green": b"four", " white": b"two"}
    tokens = {colour: texts.encode(colour) for colour in toy_language}
    corpus = Corpus(taught / "problems")
    right = []
    for groups in steps:
        for group in groups:
            ids = corpus[group.spec.document].tolist()
            door = next(toy_language[colour] for colour, ids_ in tokens.items() if ids[: len(ids_)] == ids_)
            for response in group.responses:
                answer = read_response(texts.of(response.tokens)).answer
                assert response.correct == (answer is not None and answer.strip() == door)
                right.append(response.correct)
    assert 0 < sum(right) < len(right)
    lines = reported(tmp_path / "one")
    assert lines[0]["kl"] == pytest.approx(0.0, abs=1e-6) and lines[-1]["kl"] > 1e-5
    assert [line["reward"] for line in lines] == pytest.approx(
        [
            sum(r.correct for g in groups for r in g.responses) / sum(len(g.responses) for g in groups)
            for groups in steps
        ]
    )
    for response in (response for group in steps[0] for response in group.responses):
        assert response.reference_log_probs == pytest.approx(response.log_probs, abs=1e-5)
    check_reference(write, tmp_path, "one")


def check_reference(write: Write, tmp_path: Path, run: str) -> None:
    """What a run's last rollouts say of the reference model is what a trainer that begins with its weights says."""
    groups = [
        Group(
            replace(group.spec, epoch=0),
            [replace(each, log_probs=each.reference_log_probs, reference_log_probs=None) for each in group.responses],
        )
        for group in files_of(tmp_path / run)[-1]
    ]
    header, _ = read_rollouts(rollout_file(tmp_path / run / "rollouts", 0))
    write_rollouts(rollout_file(tmp_path / f"{run}-again", 0), header, groups)
    replayed = {"rollouts": str(tmp_path / f"{run}-again"), "kl_beta": 0.0}
    train(write(f"{run}-replayed", replayed), 1)
    [line] = reported(tmp_path / f"{run}-replayed")
    assert line["policy_tokens"] > 0 and line["rollout_log_prob_diff"] < 1e-5


def test_a_killed_run_ends_as_an_uninterrupted_one(write: Write, tmp_path: Path) -> None:
    train(write("whole"), 1)
    killed = write("killed")
    kill_after(start(killed, 1), tmp_path / "killed", 1)
    train(killed, 1)
    assert reported(tmp_path / "killed") == reported(tmp_path / "whole")
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    assert same_weights(tmp_path / "whole", tmp_path / "killed")


def test_other_answers_or_another_reference_are_another_run(write: Write, taught: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    shutil.copytree(taught, folder)
    recipe = write("run")
    recipe.write_text(recipe.read_text().replace(str(taught), str(folder)))
    kill_after(start(recipe, 1, "checkpoint.save_interval=1"), tmp_path / "run", 2)
    for path in (folder / "problems.answers.json", folder / "hf" / "model.safetensors"):
        kept = path.read_bytes()
        changed = kept.replace(b'"three"', b'"seven"') if path.suffix == ".json" else kept[:-1] + b"!"
        path.write_bytes(changed)
        refused = run_davinci("train", recipe, "checkpoint.save_interval=1")
        assert refused.returncode == 2
        assert "was trained with other data, length, batch size, seed or objective" in refused.stderr
        path.write_bytes(kept)
    train(recipe, 1, "checkpoint.save_interval=1")


@pytest.mark.parametrize("layout", LAYOUTS if EFFORT > 1 else ["DP2"])
def test_every_layout_scores_alike(write: Write, tmp_path: Path, layout: str) -> None:
    ranks, megatron = LAYOUTS[layout]
    train(write("several", megatron=megatron), ranks)
    check_reference(write, tmp_path, "several")
    assert all(line["rollout_log_prob_diff"] < 1e-5 for line in reported(tmp_path / "several"))


def test_rollouts_without_verdicts_are_refused(write: Write, tmp_path: Path) -> None:
    train(write("one"), 1)
    header, groups = read_rollouts(rollout_file(tmp_path / "one" / "rollouts", 0))
    silent = [replace(g, responses=[replace(each, correct=None) for each in g.responses]) for g in groups]
    write_rollouts(rollout_file(tmp_path / "silent", 0), header, silent)
    refused = run_davinci("train", write("refused", {"rollouts": str(tmp_path / "silent")}))
    assert refused.returncode == 2 and "a response without correct, true or false" in refused.stderr
