"""Properties of reinforcement mid-training from recorded rollouts, as a user starts it."""

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import language
import pytest
import yaml
from conftest import EFFORT
from forked import run_davinci
from language import write_recipe
from test_bad_input import refuse, refuse_training
from training import kill_after, progress, reported, same_weights, start, train, uninterrupted, whole

from data_prep.io.files import read_jsonl
from megatron_davinci.demo.reinforce import RESPONSES, toy_recipe
from megatron_davinci.rl.rollout_files import read_rollouts, rollout_file, write_rollouts
from megatron_davinci.testing import run_on_ranks

STEPS = 8
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "TP2+SP": (2, {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
    "DP2": (2, {"use_distributed_optimizer": True}),
}
if EFFORT > 1:  # test_trees compares gradients of every layout
    LAYOUTS["PP2"] = (2, {"pipeline_model_parallel_size": 2})
Write = Callable[..., Path]
__all__ = ["uninterrupted", "whole"]


@pytest.fixture(scope="module")
def recorded(taught: Path) -> Path:
    """A run by the engine's rollouts, in FOLDER/recorded."""
    run_on_ranks(language.learn, 1, toy_recipe(taught, STEPS, "recorded"))
    return taught


@pytest.fixture
def write(recorded: Path, tmp_path: Path) -> Write:
    """Writes the recipe of a run NAME from the recorded rollouts, with changes to its sections."""

    def write(name: str, rollouts: Path = recorded / "recorded" / "rollouts", **changes: dict[str, Any]) -> Path:
        values = toy_recipe(recorded, STEPS, "recorded", component_norms_interval=3, rollouts=str(rollouts))
        values["checkpoint"]["save_interval"] = 3
        return write_recipe(tmp_path, name, values, **changes)

    return write


def test_a_killed_run_ends_as_an_uninterrupted_one(write: Write, whole: Path, tmp_path: Path) -> None:
    killed = write("killed")
    for step in sorted(random.Random(0).sample(range(1, STEPS - 1), min(2 * EFFORT, STEPS - 2))):
        kill_after(start(killed, 1), tmp_path / "killed", step)
    train(killed, 1)
    lines = reported(tmp_path / "killed")
    assert lines == reported(whole) and len(lines) == STEPS
    assert progress(tmp_path / "killed") == progress(whole)
    assert same_weights(whole, tmp_path / "killed")
    assert [line["step"] for line in lines if "grad_norm_policy" in line] == [1, 4, 7]
    assert all(line["prefix_sharing_ratio"] > 3 and line["rollout_log_prob_diff"] < 1e-3 for line in lines[:4])


def test_layouts_and_the_unshared_path_take_the_same_steps(write: Write, tmp_path: Path) -> None:
    """Three steps: a policy this sharp soon makes much of rounding."""
    few = rollouts_up_to(3, write("x"), tmp_path / "few")
    train(write("one", few), 1)
    train(write("alone", few, objective=objective(write("x"), share_prefix=False, rollouts=str(few))), 1)
    for name, (ranks, megatron) in LAYOUTS.items():
        train(write(name, few, megatron=megatron), ranks)
    expected = reported(tmp_path / "one")
    for name in ("alone", *LAYOUTS):
        lines = reported(tmp_path / name)
        assert len(lines) == 3
        for line, right in zip(lines, expected, strict=True):
            for key in ("loss", "policy_loss", "ntp_loss", "grad_norm", "reward", "budget", "labels"):
                assert line[key] == pytest.approx(right[key], rel=2e-3, abs=1e-5), (name, line["step"], key)
        for key in ("grad_norm_policy", "grad_norm_ntp", "grad_norm", "loss"):  # before the first update
            assert lines[0][key] == pytest.approx(expected[0][key], rel=1e-5), (name, key)


def test_the_papers_template_trains_too_with_trees_as_without(recorded: Path, tmp_path: Path, write: Write) -> None:
    """Answers to another prompt are answers all the same: what is compared is the loss of shared and unshared rows."""
    names = {"share_prefix": True, "alone": False}
    values = toy_recipe(recorded, STEPS, "wrapped", template="wrap_1")
    run_on_ranks(language.learn, 1, values)
    for name, tree in names.items():
        change = {**values["objective"], "share_prefix": tree, "rollouts": str(recorded / "wrapped" / "rollouts")}
        train(write(name, recorded / "wrapped" / "rollouts", objective=change, data={"seq_length": 1024}), 1)
    tree, alone = (reported(tmp_path / name) for name in names)
    assert len(tree) == len(alone) == STEPS
    for key in ("loss", "policy_loss", "ntp_loss", "grad_norm", "grad_norm_policy", "grad_norm_ntp"):
        assert tree[0][key] == pytest.approx(alone[0][key], rel=1e-5), key
    assert tree[1]["loss"] == pytest.approx(alone[1]["loss"], rel=1e-3)


def test_a_run_goes_as_far_as_its_rollouts_and_then_further(write: Write, whole: Path, tmp_path: Path) -> None:
    some = rollouts_up_to(4, write("whole"), tmp_path / "some")
    recipe = write("piecewise", some)
    said = train(recipe, 1)
    assert "step 4 is done and saved; step 4 needs rollouts" in said and "step_0000004.jsonl.zst" in said
    assert "step 4 needs rollouts that are not there" in refuse("train", recipe, cwd=tmp_path)
    prompts = tmp_path / "prompts.jsonl.zst"
    done = run_davinci("rmt", "prompts", recipe, "--out", prompts)
    done.check_returncode()
    told = done.stdout
    header, *specs = read_jsonl(prompts)
    recorded_file = rollout_file(Path(yaml.safe_load(write("whole").read_text())["objective"]["rollouts"]), 4)
    known, groups = read_rollouts(recorded_file)
    assert str(rollout_file(some, 4)) in told and all(known[key] == header[key] for key in known.keys() & header.keys())
    assert [{k: v for k, v in ask.items() if k != "prompt_ids"} for ask in specs] == [vars(g.spec) for g in groups]
    for step in range(4, STEPS):
        shutil.copy(rollout_file(recorded_file.parent, step), rollout_file(some, step))
    train(recipe, 1)
    assert reported(tmp_path / "piecewise") == reported(whole)
    assert same_weights(tmp_path / "piecewise", whole)


def test_a_step_with_nothing_to_learn_is_a_step_all_the_same(write: Write, tmp_path: Path) -> None:
    few = rollouts_up_to(1, write("x"), tmp_path / "few")
    header, groups = read_rollouts(rollout_file(few, 0))
    alike = [replace(group, responses=[group.responses[0]] * RESPONSES) for group in groups]
    write_rollouts(rollout_file(few, 0), header, alike)
    train(write("idle", few, objective=objective(write("x"), ntp_lambda=0.0, rollouts=str(few))), 1)
    [line] = reported(tmp_path / "idle")
    assert line["loss"] == line["grad_norm"] == line["labels"] == 0
    assert line["zero_advantage_fraction"] == 1 and line["response_tokens"] > 0


def test_reinforcement_follows_mid_training_in_one_recipe(write: Write, tmp_path: Path) -> None:
    later = tmp_path / "later"
    for step in range(STEPS):
        header, groups = read_rollouts(rollout_file(source_of(write("x")), step))
        write_rollouts(rollout_file(later, step + 1), {**header, "step": step + 1, "policy_step": step + 1}, groups)
    values = yaml.safe_load(write("two", later).read_text())
    [toy_language] = values["data"]["stages"]
    toy_language |= {"objective": values.pop("objective"), "long_documents": "error"}
    values["data"]["long_documents"] = "split"  # as mid-training has it, which comes first
    values["data"]["stages"] = [{"name": "reading", "blend": toy_language["blend"]}, toy_language]
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(values))
    train(tmp_path / "two.yaml", 1)
    lines = reported(tmp_path / "two")
    assert [line["stage"] for line in lines] == ["reading", *["doors"] * STEPS]
    assert "policy_loss" not in lines[0] and all("policy_loss" in line for line in lines[1:])


def test_what_does_not_fit_is_refused(write: Write, recorded: Path, tmp_path: Path) -> None:
    recipe = write("refused")
    for overrides, sentence in {
        ("megatron.context_parallel_size=2",): "objective rmt with context_parallel_size 2",
        ("megatron.hidden_dropout=0.1",): "megatron.hidden_dropout",
        ("batch.unit=sequences",): "set batch.unit to samples",
        ("data.long_documents=split",): "needs whole documents",
        ("data.seq_length=64",): "seq_length is 64: raise it, lower objective.max_tokens",
        ("objective.template=suffix_9",): "template 'suffix_9' is unknown; known: ",
        ("objective.difficulty.entropy=full",): "annotated with entropies of kind top16",
        ("objective.difficulty.thresholds=[9, 10, 11]",): "no token can be asked for: difficulty begins at 9 nats",
        ("objective.template=suffix_free_1",): "template suffix_free_1 lacks {budget}, by which length is rewarded",
        ("data.stages.0.blend.0.corpus=" + str(recorded / "lessons"),): "lessons has no annotation of difficulty",
        ("objective.difficulty.thresholds=[1, 0.5, 2]",): "they must rise from easy to hard",
        ("objective.curriculum.early=[1, 1, 0]",): "which adds up to 2: it must be 1",
        ("objective.budgets.initial=3",): "did you mean budget?",
        ("objective.kind=ppo",): "objective 'ppo' is unknown",
        (
            "objective.rollouts={engine: megatron}",
            "objective.kl_beta=0.1",
            "objective.reference=nowhere",
        ): "reference nowhere has",
        ("objective.group_size=1",): "objective.group_size is 1",
        ("objective.rollouts={engine: sglang}",): "rollout engine 'sglang' is unknown",
        ("objective.rollouts=nowhere",): "step 0 needs rollouts that are not there",
    }.items():
        assert sentence in refuse("train", recipe, *overrides, cwd=tmp_path), overrides
    assert "objective rmt with context_parallel_size 2" in refuse_training(recipe, "megatron.context_parallel_size=2")


def test_a_run_does_not_go_on_with_other_questions(write: Write, tmp_path: Path) -> None:
    few = rollouts_up_to(1, write("x"), tmp_path / "few")
    recipe = write("run", few)
    train(recipe, 1)
    for change in ("objective.budget.initial=2", "objective.group_size=4", "data.stages.0.epochs=9"):  # the last: T
        assert "was trained with other data, length, batch size, seed or objective" in refuse(
            "train", recipe, change, cwd=tmp_path
        )
    assert "step 1 needs rollouts" in refuse("train", recipe, "objective.share_prefix=false", cwd=tmp_path)


def test_what_was_done_before_damaged_rollouts_is_kept(write: Write, tmp_path: Path) -> None:
    some = rollouts_up_to(2, write("x"), tmp_path / "some")
    header, groups = read_rollouts(rollout_file(some, 1))
    write_rollouts(rollout_file(some, 1), header, groups[1:])
    recipe = write("run", some)
    result = run_davinci("train", recipe)
    assert result.returncode == 2 and "answers other prompts than those of step 1" in result.stderr
    assert progress(tmp_path / "run")["step"] == 1


def test_rollouts_of_another_policy_stop_before_the_step(write: Write, tmp_path: Path) -> None:
    few = rollouts_up_to(1, write("x"), tmp_path / "few")
    header, groups = read_rollouts(rollout_file(few, 0))
    for change, sentence in {
        "policy_step": "is for step 0, but its policy_step is 7",
        "tokenizer": "written with another tokenizer",
    }.items():
        write_rollouts(rollout_file(few, 0), {**header, change: 7}, groups)
        assert sentence in refuse_late(write("other", few), tmp_path / "other")


def refuse_late(recipe: Path, run: Path) -> str:
    """What a run says that finds out at its first step; no checkpoint appears."""
    result = run_davinci("train", recipe)
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 2 and last.startswith("error: ") and not list(run.glob("step_*"))
    return last


def source_of(recipe: Path) -> Path:
    return Path(yaml.safe_load(recipe.read_text())["objective"]["rollouts"])


def objective(recipe: Path, **changes: Any) -> dict[str, Any]:
    return {**yaml.safe_load(recipe.read_text())["objective"], **changes}


def rollouts_up_to(steps: int, recipe: Path, folder: Path) -> Path:
    """The recorded rollouts of the first steps alone."""
    folder.mkdir()
    for step in range(steps):
        shutil.copy(rollout_file(source_of(recipe), step), folder)
    return folder
