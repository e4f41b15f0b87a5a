"""A rollout keeps every turn but its demonstrations; what cannot be read is named; passing rollouts come apart."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep import InputError
from data_prep.corpus import Corpus
from data_prep.io.files import read_jsonl
from data_prep.sources.trajectories import UnusableTrajectory, collect_trajectories, read_trajectory
from data_prep.tokenize.tokenize import TokenizeJob, tokenize
from megatron_davinci.testing.tiny_model import write_model_directory

TURNS = [
    {"role": "system", "content": "You fix bugs."},
    {"role": "user", "content": [{"type": "text", "text": "It "}, {"type": "text", "text": "crashes."}]},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "bash", "arguments": '{"command": "ls"}'}}],
    },
    {"role": "tool", "content": "setup.py", "tool_call_ids": ["1"]},
    {"role": "assistant", "content": "Done.", "thought": "Done.", "action": "submit"},
]


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_a_rollout_keeps_its_turns_and_not_its_demonstrations(tmp_path: Path) -> None:
    shown = [{"role": "user", "content": "an example", "is_demo": True}]
    record = read_trajectory(
        write(tmp_path / "a__b-1.traj", {"history": shown + TURNS, "info": {"exit_status": "submitted"}})
    )
    assert record["id"] == "a__b-1" and record["meta"]["exit_status"] == "submitted"
    assert [message["role"] for message in record["messages"]] == ["system", "user", "assistant", "tool", "assistant"]
    assert record["messages"][1] == {"role": "user", "content": "It crashes."}
    [call] = record["messages"][2]["tool_calls"]
    assert call["function"] == {"name": "bash", "arguments": {"command": "ls"}}
    ended = [*TURNS, {"role": "exit", "content": "diff", "extra": {"exit_status": "Submitted"}}]
    named = read_trajectory(write(tmp_path / "x.traj.json", {"messages": ended, "instance_id": "c__d-2"}))
    assert named["messages"] == record["messages"]
    assert (named["id"], named["source"]) == ("c__d-2", "mini-swe-agent")
    assert read_trajectory(write(tmp_path / "bare.traj.json", TURNS))["messages"] == record["messages"]


@pytest.mark.parametrize(
    "held, reason",
    [
        ("{", "no JSON"),
        ({"trajectory": []}, "no messages"),
        (TURNS[:2], "no turn of the assistant"),
        ([{"role": "oracle", "content": ""}], "without a known role"),
        ([{"role": "assistant", "content": [{"type": "image"}]}], "a part of a message that is no text"),
        ([{"role": "assistant", "content": "", "tool_calls": [{}]}], "a tool call without a function's name"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
            "arguments are no JSON",
        ),
    ],
)
def test_what_is_no_rollout_says_why(tmp_path: Path, held: Any, reason: str) -> None:
    with pytest.raises(UnusableTrajectory, match=reason):
        read_trajectory(write(tmp_path / "t.traj", held))


def test_passing_and_failing_come_apart_and_the_rest_is_named(tmp_path: Path) -> None:
    write(tmp_path / "in" / "one" / "one.traj", {"history": TURNS})
    write(tmp_path / "in" / "two.traj.json", {"messages": TURNS})
    write(tmp_path / "in" / "broken.traj", "{")
    report = write(tmp_path / "report.json", {"resolved_ids": ["two"]})
    summary = collect_trajectories([tmp_path / "in"], tmp_path / "out", report)
    assert summary == {"files": 3, "rollouts": {"failing": 1, "passing": 1}, "rejected": {"no JSON": 1}}
    kept = {name: list(read_jsonl(tmp_path / "out" / f"{name}.jsonl.zst")) for name in ("passing", "failing")}
    assert [kept[name][0]["id"] for name in ("passing", "failing")] == ["two", "one"]
    [rejected] = read_jsonl(tmp_path / "out" / "rejected.jsonl.zst")
    assert rejected["file"].endswith("broken.traj") and rejected["reason"] == "no JSON"


def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="does not exist"):
        collect_trajectories([tmp_path / "nowhere"], out, None)
    with pytest.raises(InputError, match="no trajectory"):
        collect_trajectories([tmp_path], out, None)
    broken = write(tmp_path / "in" / "broken.traj", "{")
    with pytest.raises(InputError, match="none of 1 files holds a rollout: no JSON"):
        collect_trajectories([broken], out, None)
    with pytest.raises(InputError, match="names no resolved tasks"):
        collect_trajectories([broken], out, write(tmp_path / "report.json", {"resolved": 3}))
    assert not out.exists()


def test_real_rollouts_become_a_corpus_in_which_the_agent_is_trained(shared_data: Path, tmp_path: Path) -> None:
    summary = collect_trajectories([shared_data / "trajectories"], tmp_path / "rollouts", None)
    assert summary["rollouts"] == {"rollouts": 15} and not summary["rejected"]
    conversations = tmp_path / "rollouts" / "rollouts.jsonl.zst"
    texts = [turn["content"] for record in read_jsonl(conversations) for turn in record["messages"]]
    write_model_directory(texts, tmp_path / "model", chat=True)
    job = TokenizeJob(
        inputs=(str(conversations),),
        tokenizer=tmp_path / "model",
        outputs={"messages": tmp_path / "corpus"},
        append_eod=True,
        conversations=True,
    )
    manifest = tokenize(job)["messages"]
    assert manifest["documents"] == 15 and len(Corpus(tmp_path / "corpus")) == 15
    assert 0.05 < manifest["trained_tokens"] / manifest["tokens"] < 0.5
