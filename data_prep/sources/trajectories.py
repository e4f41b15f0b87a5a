"""Rollouts of agents, from the files that agents leave, to conversations: SWE-agent, mini-swe-agent, or bare messages.

Known forms of a file: a JSON list of messages; an object with `messages` (mini-swe-agent) or `history` (SWE-agent).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson

from data_prep.io.errors import InputError
from data_prep.io.files import JsonlWriter, jsonl_writer, new_directory, read_json, write_json

_SUFFIXES = (".traj.json", ".traj", ".json")
_ROLES = frozenset({"system", "user", "assistant", "tool"})


class UnusableTrajectory(ValueError):
    """Why a file gives no conversation."""


def collect_trajectories(paths: Sequence[Path], out: Path, resolved: Path | None) -> dict[str, Any]:
    """Conversations of all trajectories under `paths`, into `out`: rollouts.jsonl.zst or, given a report of the tasks
    that were resolved, passing.jsonl.zst and failing.jsonl.zst; what is left out, with its reason, rejected.jsonl.zst.

    Raises InputError where there are no trajectories, or the report is none.
    """
    files = list(trajectory_files(paths))
    if not files:
        raise InputError(f"no trajectory ({', '.join(_SUFFIXES)}) is under {', '.join(map(str, paths))}")
    passed = None if resolved is None else resolved_tasks(resolved)
    kept: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    with new_directory(out) as directory:
        with ExitStack() as stack:
            names = ["rollouts"] if passed is None else ["passing", "failing"]
            writers: dict[str, JsonlWriter] = {}
            for name in [*names, "rejected"]:
                writers[name] = stack.enter_context(jsonl_writer(directory / f"{name}.jsonl.zst"))
            for file in files:
                name, record = _sorted_in(file, passed)
                writers[name].write(record)
                (reasons if name == "rejected" else kept)[record.get("reason", name)] += 1
        if not kept:
            raise InputError(f"none of {len(files)} files holds a rollout: {', '.join(reasons)}")
        summary = {"files": len(files), "rollouts": dict(kept), "rejected": dict(reasons)}
        write_json(directory / "summary.json", summary)
    return summary


def _sorted_in(file: Path, passed: frozenset[str] | None) -> tuple[str, dict[str, Any]]:
    """The stream that a file belongs to, and its record there."""
    try:
        record = read_trajectory(file)
    except UnusableTrajectory as reason:
        return "rejected", {"file": str(file), "reason": str(reason)}
    if passed is None:
        return "rollouts", record
    return "passing" if record["id"] in passed else "failing", record


def trajectory_files(paths: Iterable[Path]) -> Iterator[Path]:
    """The files among `paths`, and the trajectories under its directories, in the order of their names."""
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist")
        if path.is_file():
            yield path
        else:
            yield from sorted(file for file in path.rglob("*") if file.is_file() and file.name.endswith(_SUFFIXES))


def read_trajectory(path: Path) -> dict[str, Any]:
    """One conversation: id, messages, source, meta. Raises NotARollout."""
    try:
        held = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError:
        raise UnusableTrajectory("no JSON") from None
    of = held if isinstance(held, dict) else {}
    source = "swe-agent" if "history" in of else "mini-swe-agent"
    said = of.get("history", of.get("messages")) if of else held
    if not isinstance(said, list):
        raise UnusableTrajectory("no messages")
    messages = [_message(each) for each in said if not _is_beside(each)]
    if not any(message["role"] == "assistant" for message in messages):
        raise UnusableTrajectory("no turn of the assistant")
    info = of.get("info") if isinstance(of.get("info"), dict) else {}
    return {
        "id": str(of.get("instance_id") or _task_of(path)),
        "messages": messages,
        "source": source,
        "meta": {"exit_status": (info or {}).get("exit_status"), "file": path.name},
    }


def _is_beside(said: Any) -> bool:
    """Demonstrations, which are copies, and mini-swe-agent's note of how it ended."""
    return isinstance(said, dict) and (bool(said.get("is_demo")) or said.get("role") == "exit")


def _task_of(path: Path) -> str:
    """The name of a file without its ending: agents name it by the task."""
    return next((path.name.removesuffix(end) for end in _SUFFIXES if path.name.endswith(end)), path.stem)


def _message(said: Any) -> dict[str, Any]:
    """The fields that chat templates read; tool calls with their arguments as an object."""
    if not isinstance(said, dict) or said.get("role") not in _ROLES:
        raise UnusableTrajectory("a message without a known role")
    message = {"role": said["role"], "content": _text(said.get("content"))}
    if said.get("tool_calls"):
        message["tool_calls"] = [_tool_call(call) for call in said["tool_calls"]]
    return message


def _text(content: Any) -> str:
    """Text of a content: plain, or in parts."""
    if isinstance(content, list):
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise UnusableTrajectory("a part of a message that is no text")
        return "".join(part["text"] for part in content)
    if content is not None and not isinstance(content, str):
        raise UnusableTrajectory("a part of a message that is no text")
    return content or ""


def _tool_call(call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UnusableTrajectory("a tool call without a function's name")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):  # as servers send it; templates write an object
        try:
            arguments = orjson.loads(arguments)
        except orjson.JSONDecodeError:
            raise UnusableTrajectory("a tool call whose arguments are no JSON") from None
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def resolved_tasks(report: Path) -> frozenset[str]:
    """Names of the tasks that were resolved: of SWE-bench's report (`resolved_ids`), or a JSON list of them."""
    held = read_json(report)
    names = held.get("resolved_ids") if isinstance(held, dict) else held
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{report} names no resolved tasks: give SWE-bench's report (resolved_ids), or a JSON list")
    return frozenset(names)
