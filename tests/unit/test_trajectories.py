"""A rollout keeps every turn but its demonstrations; what cannot be read is named; passing rollouts come apart."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from data_prep import InputError
from data_prep.corpus import Corpus
from data_prep.io.files import jsonl_writer, read_jsonl
from data_prep.samples.show import show_samples
from data_prep.sources.trajectories import UnusableTrajectory, collect_trajectories, conversation_in, held_in
from data_prep.sources.trajectory_length import TrajectoryLength
from data_prep.tokenize.conversation import ConversationError
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


def read_trajectory(path: Path) -> dict[str, Any]:
    [found] = held_in(path)
    return conversation_in(found)[0]


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
    with pytest.raises((UnusableTrajectory, ConversationError), match=reason):
        read_trajectory(write(tmp_path / "t.traj", held))


def test_passing_and_failing_come_apart_and_the_rest_is_named(tmp_path: Path) -> None:
    write(tmp_path / "in" / "one" / "one.traj", {"history": TURNS})
    write(tmp_path / "in" / "two.traj.json", {"messages": TURNS})
    write(tmp_path / "in" / "broken.traj", "{")
    report = write(tmp_path / "report.json", {"resolved_ids": ["two"]})
    summary = collect_trajectories([tmp_path / "in"], tmp_path / "out", report)
    assert summary == {
        "files": 3,
        "trajectories": 3,
        "rollouts": {"failing": 1, "passing": 1},
        "rejected": {"no JSON": 1},
        "replies": 4,
        "untrained_replies": 0,
    }
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
    with pytest.raises(InputError, match="none of 1 trajectories can be used: no JSON"):
        collect_trajectories([broken], out, None)
    with pytest.raises(InputError, match="names no resolved tasks"):
        collect_trajectories([broken], out, write(tmp_path / "report.json", {"resolved": 3}))
    assert not out.exists()


def test_real_rollouts_become_a_corpus_in_which_the_agent_is_trained(shared_data: Path, tmp_path: Path) -> None:
    summary = collect_trajectories([shared_data / "trajectories"], tmp_path / "rollouts", None)
    assert summary["rollouts"] == {"rollouts": 15} and set(summary["rejected"]) == {"no messages"}  # predictions
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


BASH = {"type": "function", "function": {"name": "bash", "parameters": {"type": "object"}}}
CALLED = [
    {"role": "user", "content": "fix"},
    {
        "role": "assistant",
        "content": None,
        "reasoning_content": "I think",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "bash", "arguments": '{"command":"ls"}'}}],
    },
    {"role": "tool", "content": "x", "tool_call_id": "1"},
    {"role": "assistant", "content": "done"},
]
NEBIUS = [
    {"role": "system", "system_prompt": "s", "text": None, "mask": True, "cutoff_date": None},
    {"role": "user", "system_prompt": None, "text": "fix", "mask": True, "cutoff_date": None},
    {"role": "ai", "system_prompt": None, "text": "done", "mask": False, "cutoff_date": None},
]
PUBLISHED: dict[str, dict[str, Any]] = {
    "SWE-smith": {"messages": json.dumps(CALLED), "instance_id": "o__r.1234567.x__1", "resolved": True, "traj_id": "t"},
    "SWE-rebench": {
        "trajectory": CALLED, "tools": [BASH], "instance_id": "o__r-1", "repo": "o/r", "resolved": 1,
        "trajectory_id": "t",
        "exit_status": "submit",
    },
    "Nebius": {"trajectory": NEBIUS, "instance_id": "o__r-1", "target": True, "model_name": "m"},
    "OpenSWE": {"messages": CALLED, "tools": json.dumps([BASH]), "instance_id": "o__r-1", "resolved": True},
    "daVinci-Dev": {"messages": CALLED, "success": True},
}  # fmt: skip


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_rows_of_published_tables_become_conversations(tmp_path: Path, name: str, form: str) -> None:
    row = PUBLISHED[name]
    verdict = next(key for key in ("resolved", "success", "target") if key in row)
    rows = [row, {**row, verdict: type(row[verdict])(0)}, {**row, verdict: None}]
    table = tmp_path / f"rows.{form}"
    if form == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    else:
        table.write_text("".join(json.dumps(each) + "\n" for each in rows))
    summary = collect_trajectories([table], tmp_path / "out", None)
    assert summary["rollouts"] == {"failing": 1, "passing": 1, "rollouts": 1} and summary["trajectories"] == 3
    [record] = read_jsonl(tmp_path / "out" / "passing.jsonl.zst")
    last = record["messages"][-1]
    assert (last["role"], last["content"]) == ("assistant", "done")
    assert record["id"] == row.get("instance_id", "rows-1")
    if name == "Nebius":
        assert [m["content"] for m in record["messages"]] == ["s", "fix", "done"] and record["meta"]["model"] == "m"
    else:
        called = record["messages"][1]
        assert called["reasoning_content"] == "I think" and called["content"] == ""
        assert called["tool_calls"][0]["function"]["arguments"] == {"command": "ls"}
        assert record.get("tools") == ([BASH] if "tools" in row else None)


def test_tools_and_reasoning_stay_and_tasks_of_swe_bench_are_left_out(tmp_path: Path) -> None:
    for name in ("psf__requests-1142", "psf__requests-99999", "o__r-1", "sphinx-doc__sphinx.12345678.x__y", "o__r-2"):
        write(tmp_path / "in" / f"{name}.traj.json", {"instance_id": name, "messages": CALLED, "tools": [BASH]})
    summary = collect_trajectories([tmp_path / "in"], tmp_path / "out", None)
    assert summary["rejected"] == {"repository_of_swe_bench_verified": 2, "swe_bench_verified": 1}
    records = list(read_jsonl(tmp_path / "out" / "rollouts.jsonl.zst"))
    assert [record["id"] for record in records] == ["o__r-1", "o__r-2"]
    assert all(record["tools"] == [BASH] for record in records)
    assert records[0]["messages"][1]["reasoning_content"] == "I think"


def test_rollouts_above_the_limit_are_left_out_with_a_reason(tmp_path: Path) -> None:
    write(tmp_path / "in" / "short.traj.json", {"messages": TURNS[:2] + TURNS[4:]})
    long = {"role": "user", "content": "word " * 500}
    write(tmp_path / "in" / "long.traj.json", {"messages": [TURNS[0], long, *TURNS[4:]]})
    write_model_directory(["It crashes. Done. word"], tmp_path / "model", chat=True)
    length = TrajectoryLength(tmp_path / "model", None, 300)
    summary = collect_trajectories([tmp_path / "in"], tmp_path / "out", None, length)
    assert summary["rejected"] == {"too_long": 1} and summary["rollouts"] == {"rollouts": 1}
    [record] = read_jsonl(tmp_path / "out" / "rollouts.jsonl.zst")
    assert 0 < record["tokens"] <= 300
    with pytest.raises(InputError, match="--max-tokens is 0; it must be at least 1"):
        TrajectoryLength(tmp_path / "model", None, 0)


def test_conversations_can_be_read(tmp_path: Path) -> None:
    """By the directory, and by one of its files; whatever a record holds."""
    turns = [
        {"role": "user", "content": "fix it"},
        {"role": "assistant", "content": "done", "tool_calls": [{"id": 1}]},
        3,
    ]
    with jsonl_writer(tmp_path / "passing.jsonl.zst") as writer:
        writer.write({"id": "a", "messages": turns})
        writer.write({"id": "b", "messages": 7})
    for path in (tmp_path, tmp_path / "passing.jsonl.zst"):
        [(heading, text), (_, empty)] = show_samples(path, 0, 5)
        assert "sample 0: a" in heading and text == "[user]\nfix it\n\n[assistant]\ndone\n[{'id': 1}]" and empty == ""
