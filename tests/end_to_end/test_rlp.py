"""Properties of objective rlp: rewards are what Hugging Face computes, and a run goes on as if nothing had happened."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import of_acceptance
from language import write_recipe
from training import kill_after, progress, reported, same_weights, start, train, undescribed
from transformers import AutoModelForCausalLM

from data_prep import InputError
from data_prep.corpus import Corpus
from megatron_davinci.config import parse_recipe
from megatron_davinci.demo.reinforce import toy_recipe
from megatron_davinci.rl.objectives.rlp import ThoughtEnd, leave_one_out
from megatron_davinci.rl.rollout_files import read_rollouts, rollout_file
from megatron_davinci.rl.scored_rollouts import read_scored
from megatron_davinci.rl.templates import load_template
from megatron_davinci.rl.token_bytes import TokenBytes
from megatron_davinci.weights.to_huggingface import export_to_hf

STEPS = 3
OBJECTIVE = {"kind": "rlp", "group_size": 4, "max_tokens": 6, "positions_per_document": 2}
Write = Callable[..., Path]


@pytest.fixture
def write(taught: Path, tmp_path: Path) -> Write:
    """Writes the recipe of a run NAME, with changes to its sections."""

    def write(name: str, **changes: dict[str, Any]) -> Path:
        values = {**toy_recipe(taught, STEPS, name), "objective": dict(OBJECTIVE)}
        values["checkpoint"].update(save_interval=1, save_total_limit=9)
        return write_recipe(tmp_path, name, values, **changes)

    return write


def log_prob(model: Any, prompt: list[int], token: int) -> float:
    with torch.no_grad():
        return float(model(torch.tensor([prompt])).logits[0, -1].float().log_softmax(-1)[token])


def test_a_thought_is_worth_what_hugging_face_says(write: Write, taught: Path, tmp_path: Path) -> None:
    """log p(x_t | x_<t, c) - log p(x_t | x_<t); at every step, of the weights before it."""
    train(write("run"), 1)
    run, texts, corpus = tmp_path / "run", TokenBytes(taught / "hf"), Corpus(taught / "docs")
    prompt = load_template("thought_1", texts.encode)
    exported = [taught / "hf", *(tmp_path / f"hf-{step}" for step in range(1, STEPS))]
    for step, directory in enumerate(exported[1:], 1):
        export_to_hf(run / f"step_{step:07d}", directory)
    models = [AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval() for directory in exported]
    for step in range(STEPS):
        _, groups = read_rollouts(rollout_file(run / "rollouts", step))
        shown = read_scored(run, step + 1)
        assert len(groups) == len(shown) > 16  # two positions of a document, where it has them
        for group, scored in zip(groups, shown, strict=True):
            ids, at = corpus[group.spec.document].tolist(), group.spec.position
            base = log_prob(models[step], ids[:at], ids[at])
            gains = [
                log_prob(models[step], [*ids[:at], *prompt.instruction_ids(0), *response.tokens], ids[at]) - base
                for response in group.responses
            ]
            assert [each.reward for each in scored.responses] == pytest.approx(gains, abs=2e-4)
            assert [each.advantage for each in scored.responses] == pytest.approx(leave_one_out(gains), abs=4e-4)
            for response in group.responses:
                closes = b"</think>" in b"".join(texts.of(response.tokens))
                assert response.finished or (not closes and len(response.tokens) == OBJECTIVE["max_tokens"])
    line = reported(run)[0]
    every = [each.reward for scored in read_scored(run, 1) for each in scored.responses]
    assert line["information_gain"] == pytest.approx(sum(every) / len(every))
    assert line["helpful_fraction"] == pytest.approx(sum(gain > 0 for gain in every) / len(every))
    assert "accuracy" not in line and "reward" not in line and undescribed(run) == set()


@of_acceptance
def test_a_killed_run_ends_as_an_uninterrupted_one(write: Write, tmp_path: Path) -> None:
    train(write("whole"), 1)
    killed = write("killed")
    kill_after(start(killed, 1), tmp_path / "killed", 2)
    train(killed, 1)
    assert progress(tmp_path / "whole") == progress(tmp_path / "killed")
    assert same_weights(tmp_path / "whole", tmp_path / "killed")
    for step in range(1, STEPS + 1):
        assert read_scored(tmp_path / "whole", step) == read_scored(tmp_path / "killed", step)


@of_acceptance
def test_layouts_reward_alike(write: Write, tmp_path: Path) -> None:
    train(write("one"), 1)
    layouts = {
        "tensor": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
        "pipeline": {"pipeline_model_parallel_size": 2},
        "data": {"use_distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True},
    }
    for name, megatron in layouts.items():
        train(write(name, megatron=megatron), 2)
        for step in range(1, STEPS + 1):
            one, other = (read_scored(tmp_path / run, step) for run in ("one", name))
            for prompt, same in zip(one, other, strict=True):
                assert [each.reward for each in prompt.responses] == pytest.approx(
                    [each.reward for each in same.responses], abs=2e-3
                )


@pytest.mark.parametrize("more", [{"dynamic_sampling": 2}, {"stop_at_answer": True}, {"paper": {"advantage_ddof": 0}}])
def test_what_has_nothing_to_do_is_refused(taught: Path, more: dict[str, Any]) -> None:
    values = {**toy_recipe(taught, 1, "run"), "objective": {**OBJECTIVE, **more}}
    with pytest.raises(InputError, match="has nothing to do in objective rlp: leave it out"):
        parse_recipe(values)


def test_a_thought_ends_behind_its_tag() -> None:
    end = ThoughtEnd([b"so", b"</th", b"ink>", b"x", b"</think>"])
    assert end.position([0, 1, 2, 3]) == 3 and end.position([0, 4]) == 2 and end.position([0, 1, 3, 2]) is None


def test_a_thought_is_compared_with_the_others() -> None:
    assert leave_one_out([1.0, 0.0, 0.5]) == [0.75, -0.75, 0.0]
