"""Properties of reinforcement mid-training by the engine inside the trainer, as a user starts it."""

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import EFFORT, of_acceptance
from language import write_recipe
from training import kill_after, kill_when, progress, reported, same_weights, start, train, undescribed

from data_prep.corpus import AnnotationWriter, Corpus
from megatron_davinci.demo.reinforce import toy_recipe
from megatron_davinci.report.metrics_file import read_metrics
from megatron_davinci.rl.rollout_files import read_rollouts, rollout_file
from megatron_davinci.rl.scored_rollouts import read_scored, scored_steps
from megatron_davinci.rl.token_bytes import TokenBytes

STEPS = 6
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "TP2+SP": (2, {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
    "PP2": (2, {"pipeline_model_parallel_size": 2}),
    "DP2": (2, {"use_distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True}),
}
Write = Callable[..., Path]


@pytest.fixture
def write(taught: Path, tmp_path: Path) -> Write:
    """Writes the recipe of a run NAME, with changes to its sections."""

    def write(name: str, **changes: dict[str, Any]) -> Path:
        values = toy_recipe(taught, STEPS, name)
        values["checkpoint"]["save_interval"] = 2
        return write_recipe(tmp_path, name, values, **changes)

    return write


@pytest.fixture
def varied(taught: Path, tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Changes to a recipe: documents of all difficulties, and a budget that falls."""
    for path in taught.glob("docs.*"):
        if not path.name.startswith("docs.entropy"):
            shutil.copy(path, tmp_path)
    corpus = Corpus(tmp_path / "docs")
    writer = AnnotationWriter(corpus, {"entropy": "top16", "model": "-", "precision": "fp32"})
    writer.append(np.random.default_rng(3).uniform(0, 2, len(corpus.tokens)).astype(np.float32))
    writer.commit()
    stage = {"name": "doors", "blend": [{"corpus": str(corpus.prefix)}], "epochs": STEPS}
    return {"data": {"stages": [stage]}, "objective": {"budget": {"initial": 4, "gamma": 0.2}}}


@of_acceptance
def test_a_killed_run_ends_as_an_uninterrupted_one(
    write: Write, varied: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    """On two replicas; curriculum and budget go on where they were."""
    train(write("whole", **varied), 2)
    killed, run = write("killed", **varied), tmp_path / "killed"
    written = [rollout_file(run / "rollouts", step) for step in range(STEPS)]
    kill_after(start(killed, 2), run, 1)  # what follows a step without a checkpoint is the engine, answering
    assert written[0].is_file() and not written[1].is_file()
    kill_when(start(killed, 2), written[2].is_file)  # and what follows its answers is the step
    assert len(reported(run)) == 2
    for step in sorted(random.Random(1).sample(range(3, STEPS - 1), min(EFFORT - 1, 2))):
        kill_after(start(killed, 2), run, step)
    train(killed, 2)
    lines = reported(tmp_path / "killed")
    assert len({line["budget"] for line in lines}) > 2 and any(line["empty_levels"] for line in lines)
    assert len({(line["positions_easy"], line["positions_hard"]) for line in lines}) > 1
    assert lines == reported(tmp_path / "whole") and len(lines) == STEPS
    assert progress(tmp_path / "killed") == progress(tmp_path / "whole")
    assert same_weights(tmp_path / "whole", tmp_path / "killed")
    for step in range(STEPS):
        one, other = (read_rollouts(rollout_file(tmp_path / run / "rollouts", step)) for run in ("whole", "killed"))
        assert one == other
        assert read_scored(tmp_path / "whole", step + 1) == read_scored(tmp_path / "killed", step + 1)
    assert undescribed(tmp_path / "whole") == set()
    assert (tmp_path / "whole" / "answers.jsonl").read_bytes() == (tmp_path / "killed" / "answers.jsonl").read_bytes()


def test_scored_rollouts_say_what_was_trained_on(
    write: Write, varied: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    recipe, run = write("run", **varied), tmp_path / "run"
    said = train(recipe, 1, "data.stages.0.epochs=2")
    lines = read_metrics(run / "metrics.jsonl")
    assert re.search(r"step 1/2  reward 0\.\d+  accuracy \d+\.\d%  length \d+\.\d  truncated \d+\.\d%  lr ", said)
    assert scored_steps(run) == [1, 2]
    texts, documents = TokenBytes(Path(yaml.safe_load(recipe.read_text())["model"])), Corpus(tmp_path / "docs")
    for step, line in enumerate(lines, 1):
        prompts, (_, groups) = read_scored(run, step), read_rollouts(rollout_file(run / "rollouts", step - 1))
        by_place = {(group.spec.document, group.spec.position): group for group in groups}
        assert len(prompts) == len(by_place)
        for prompt in prompts:
            ids, group = documents[prompt.document].tolist(), by_place[prompt.document, prompt.position]
            assert prompt.before == b"".join(texts.of(ids[: prompt.position])).decode(errors="replace")
            assert prompt.truth == texts.of([ids[prompt.position]])[0].decode(errors="replace")
            assert prompt.budget == line["budget"] and prompt.corpus == "docs"
            for shown, response in zip(prompt.responses, group.responses, strict=True):
                assert shown.text == b"".join(texts.of(response.tokens)).decode(errors="replace")
                assert (shown.tokens, shown.finished) == (len(response.tokens), response.finished)
                assert shown.correct == (shown.answer == prompt.truth)
                assert shown.reward == pytest.approx(0.9 * shown.correct + 0.1 * shown.length_reward)
        every = [response for prompt in prompts for response in prompt.responses]
        assert fmean(each.reward for each in every) == pytest.approx(line["reward"])
        assert fmean(not each.finished for each in every) == pytest.approx(line["truncated_fraction"])
        assert abs(fmean(each.advantage for each in every)) < 1e-6


def test_every_layout_answers_alike(write: Write, tmp_path: Path) -> None:
    """The first step's responses, token for token; and what the trainer makes of them is what the engine saw.

    A small cache changes nothing either: documents then wait for their turn.
    """
    train(write("one"), 1)
    _, expected = read_rollouts(rollout_file(tmp_path / "one" / "rollouts", 0))
    objective = yaml.safe_load((tmp_path / "one.yaml").read_text())["objective"]
    small = {"objective": {**objective, "rollouts": {"cache_tokens": 300}}}
    wanted = LAYOUTS if EFFORT > 1 else {"DP2": LAYOUTS["DP2"]}  # the parity tests have the others
    changes = {name: (ranks, {"megatron": megatron}) for name, (ranks, megatron) in wanted.items()}
    for name, (ranks, change) in {**changes, "small cache": (1, small)}.items():
        train(write(name, **change), ranks)
        _, found = read_rollouts(rollout_file(tmp_path / name / "rollouts", 0))
        for group, right in zip(found, expected, strict=True):
            assert group.spec == right.spec
            for response, other in zip(group.responses, right.responses, strict=True):
                assert response.tokens == other.tokens and response.finished == other.finished
                assert response.log_probs == pytest.approx(other.log_probs, abs=1e-4)
        assert all(line["rollout_log_prob_diff"] < 1e-5 for line in reported(tmp_path / name))


def test_prompts_without_a_difference_are_answered_anew(write: Write, tmp_path: Path) -> None:
    """On two replicas as on one; a group with both verdicts stays as it was, and what is left is counted."""

    def verdicts(name: str, step: int) -> list[list[bool | None]]:
        return [[r.correct for r in prompt.responses] for prompt in read_scored(tmp_path / name, step)]

    changes = {"group_size": 2, "dynamic_sampling": 3}
    train(write("once", objective={"group_size": 2}), 1, "data.stages.0.epochs=1")
    train(write("often", objective=changes), 1, "data.stages.0.epochs=2")
    train(write("ranks", objective=changes), 2, "data.stages.0.epochs=2")
    once, often = verdicts("once", 1), verdicts("often", 1)
    both = [len(set(group)) == 2 for group in once]
    assert 0 < sum(both) < len(both) and sum(len(set(group)) == 2 for group in often) > sum(both)
    assert all(now == before for now, before, kept in zip(often, once, both, strict=True) if kept)
    line = reported(tmp_path / "often")[0]
    assert line["resampled_prompts"] >= both.count(False) and "resampled_prompts" not in reported(tmp_path / "once")[0]
    assert line["zero_accuracy_variance_fraction"] == fmean(len(set(group)) < 2 for group in often)
    for step in range(2):
        one, two = (read_rollouts(rollout_file(tmp_path / run / "rollouts", step))[1] for run in ("often", "ranks"))
        assert [[r.tokens for r in group.responses] for group in one] == [
            [r.tokens for r in group.responses] for group in two
        ]
    assert undescribed(tmp_path / "often") == set()


def test_a_model_that_never_closes_its_thought_is_counted(write: Write, taught: Path, tmp_path: Path) -> None:
    """One that has learnt nothing: its answers are cut off, wrong, and no reason to stop."""
    recipe = write("untaught")
    values = yaml.safe_load(recipe.read_text())
    values.pop("init_from")
    recipe.write_text(yaml.safe_dump({**values, "model": str(taught / "model")}))
    train(recipe, 1, "data.stages.0.epochs=2")
    lines = reported(tmp_path / "untaught")
    assert [line["unclosed_fraction"] for line in lines] == [1.0, 1.0]
    assert all(line["accuracy"] == 0.0 and line["truncated_fraction"] > 0.9 for line in lines)
