"""Tests of rollout files: what is written comes back to the last bit; what does not belong to a step is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep import InputError
from data_prep.io.files import jsonl_writer, read_jsonl
from megatron_davinci.rl.replay import Replay
from megatron_davinci.rl.rollout_files import Group, PromptSpec, Response, read_rollouts, rollout_file, write_rollouts

HEADER = {"step": 4, "policy_step": 4, "tokenizer": "t"}
ASK = PromptSpec(document=3, epoch=0, position=7, level=1, budget=20, prompt="ab")
GROUP = Group(ASK, [Response([5, 6], [-0.5, -0.25], True), Response([7], [-1.0], False)])

log_probs = st.floats(max_value=0.0, allow_nan=False, allow_infinity=False, width=32)
responses = st.lists(st.tuples(st.integers(0, 1 << 20), log_probs), max_size=5).map(
    lambda pairs: Response([t for t, _ in pairs], [p for _, p in pairs], True)
)


@pytest.fixture
def replay(tmp_path: Path) -> Replay:
    return Replay(tmp_path, "t", group_size=2, max_tokens=9, vocab_size=100, on_policy=True, with_reference=False)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(responses, max_size=4))
def test_what_is_written_comes_back(tmp_path: Path, several: list[Response]) -> None:
    write_rollouts(tmp_path / "r.jsonl.zst", HEADER, [Group(ASK, several)])
    assert read_rollouts(tmp_path / "r.jsonl.zst") == ({"format": 1, **HEADER}, [Group(ASK, several)])


def test_a_step_finds_its_rollouts(replay: Replay) -> None:
    write_rollouts(replay.file(4), HEADER, [GROUP])
    assert replay.read(4, [ASK]) == [GROUP]
    assert replay.first_missing(4, 9) == 5 and replay.first_missing(3, 9) == 3 and replay.first_missing(4, 5) == 5


@pytest.mark.parametrize(
    "header, group, sentence",
    [
        ({"tokenizer": "u"}, GROUP, "written with another tokenizer"),
        ({"step": 3}, GROUP, "holds rollouts for step 3"),
        ({"policy_step": 2}, GROUP, "by the policy after 2 steps, and trains step 4"),
        ({"policy_step": 5}, GROUP, "is for step 4, but its policy_step is 5"),
        ({"temperature": 0.8}, GROUP, "sampled at temperature 0.8, objective.temperature is 1.0"),
        ({}, replace(GROUP, spec=replace(ASK, prompt="cd")), "answers other prompts than those of step 4"),
        ({}, replace(GROUP, responses=GROUP.responses[:1]), "1 responses, objective.group_size is 2"),
        ({}, replace(GROUP, responses=[GROUP.responses[0]] * 2 + []), None),
        ({}, replace(GROUP, responses=[Response([1] * 10, [0.0] * 10, True)] * 2), "a response of 10 tokens"),
        ({}, replace(GROUP, responses=[Response([100], [0.0], True)] * 2), "token 100, the model has 100"),
    ],
)
def test_rollouts_of_something_else_are_refused(
    replay: Replay, header: dict[str, Any], group: Group, sentence: str | None
) -> None:
    write_rollouts(replay.file(4), {**HEADER, **header}, [group])
    if sentence is None:
        assert replay.read(4, [ASK]) == [group]
        return
    with pytest.raises(InputError, match=sentence):
        replay.read(4, [ASK])


def test_lines_may_stand_in_any_order_but_only_once(replay: Replay) -> None:
    other = replace(GROUP, spec=replace(ASK, position=8))
    write_rollouts(replay.file(4), HEADER, [other, GROUP])
    assert replay.read(4, [ASK, other.spec]) == [GROUP, other]
    write_rollouts(replay.file(4), HEADER, [other, GROUP, GROUP])
    with pytest.raises(InputError, match="one twice"):
        replay.read(4, [ASK, other.spec])


def test_older_rollouts_are_taken_where_a_ratio_corrects_for_them(replay: Replay) -> None:
    write_rollouts(replay.file(4), {**HEADER, "policy_step": 2}, [GROUP])
    assert replace(replay, on_policy=False).read(4, [ASK]) == [GROUP]
    write_rollouts(replay.file(4), {**HEADER, "policy_step": 5}, [GROUP])
    with pytest.raises(InputError, match="no policy is there yet that has taken so many steps"):
        replace(replay, on_policy=False).read(4, [ASK])


def test_a_kl_term_needs_the_reference_model(replay: Replay) -> None:
    write_rollouts(replay.file(4), HEADER, [GROUP])
    with pytest.raises(InputError, match="no reference_log_probs, which objective"):
        replace(replay, with_reference=True).read(4, [ASK])


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": [5]},
        {"tokens": [5, -1]},
        {"tokens": [5, 1.5]},
        {"log_probs": [-0.5, 0.1]},
        {"log_probs": [-0.5, None]},
        {"log_probs": [-0.5, False]},
        {"log_probs": None},
        {"finished": None},
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    path = rollout_file(tmp_path, 4)
    write_rollouts(path, HEADER, [GROUP])
    header, line = list(read_jsonl(path))
    line["responses"][0] |= change
    with jsonl_writer(path) as writer:
        writer.write(header)
        writer.write(line)
    with pytest.raises(InputError, match=r"step_0000004.jsonl.zst, line 2, is no group of rollouts"):
        read_rollouts(path)


@pytest.mark.parametrize(
    "change", [{"position": 4.0}, {"position": [2]}, {"document": True}, {"epoch": -1}, {"level": {}}, {"prompt": 5}]
)
def test_a_damaged_question_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    path = rollout_file(tmp_path, 4)
    write_rollouts(path, HEADER, [GROUP])
    header, line = list(read_jsonl(path))
    with jsonl_writer(path) as writer:
        writer.write(header)
        writer.write(line | change)
    with pytest.raises(InputError, match=r"step_0000004.jsonl.zst, line 2, is no group of rollouts"):
        read_rollouts(path)


@pytest.mark.parametrize("change", [{"policy_step": "1"}, {"policy_step": None}, {"policy_step": -3}, {"step": 4.0}])
def test_a_damaged_header_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    path = rollout_file(tmp_path, 4)
    write_rollouts(path, {**HEADER, **change}, [GROUP])
    with pytest.raises(InputError, match=r"step_0000004.jsonl.zst does not begin with a header"):
        read_rollouts(path)


def test_a_file_without_a_header_is_refused(tmp_path: Path) -> None:
    with jsonl_writer(tmp_path / "r.jsonl.zst") as writer:
        writer.write({"step": 1})
    with pytest.raises(InputError, match="does not begin with a header of rollouts"):
        read_rollouts(tmp_path / "r.jsonl.zst")
