"""Rollouts of agents, from the files that agents leave and the tables that people publish, to conversations.

A file holds a JSON list of messages, or an object with `messages` (mini-swe-agent) or `history` (SWE-agent). A row of a
table (Parquet, JSON Lines) holds `messages`, `trajectory`, `conversations` or `history`, and perhaps the verdict:
`resolved`, `success` or `target` (SWE-smith, SWE-rebench, Nebius, OpenSWE, daVinci-Dev's env_native).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from data_prep.changes.swe_bench import holds_swe_bench_task, is_named_like_swe_bench, repository_of_task
from data_prep.io.errors import InputError, printable
from data_prep.io.files import JsonlWriter, jsonl_writer, new_directory, read_json, write_json
from data_prep.sources.trajectory_length import TrajectoryLength
from data_prep.sources.trajectory_rules import ResolvedCounts, TrajectoryRules, failed_replies, mask_replies
from data_prep.sources.trajectory_text import NotTextual, as_text_messages
from data_prep.tokenize.chunk import BrokenRecord, Columns
from data_prep.tokenize.conversation import ConversationError, conversation_of
from data_prep.tokenize.encode import without_nulls
from data_prep.tokenize.inputs import read
from data_prep.tokenize.records import records_of

_SUFFIXES = (".traj.json", ".traj", ".json")
_TABLES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst")
_MESSAGES = ("messages", "history", "trajectory", "conversations")
_VERDICTS = ("resolved", "success", "target")
_NAMES = ("instance_id", "task_id", "id")
_REPOSITORIES = ("repo", "repository", "repo_name")
_OTHERS = ("tools", "exit_status", "system", *_REPOSITORIES, "trajectory_id", "traj_id", "model", "model_name", "info")
_NOT_JUDGED = {"environment": "not_judged", "tampered": "tampered"}  # outcomes of our records -> why they are left out
_KEPT = frozenset({"role", "content", "tool_calls", "reasoning_content", "name", "tool_call_id"})


class UnusableTrajectory(ValueError):
    """Why a file, or a row, gives no conversation."""


@dataclass(frozen=True)
class Found:
    """What lies in one place: an object with the messages, or why there is none."""

    place: str
    default_id: str
    held: Any
    reason: str | None = None


def collect_trajectories(
    paths: Sequence[Path],
    out: Path,
    resolved: Path | None,
    length: TrajectoryLength | None = None,
    rules: TrajectoryRules | None = None,
) -> dict[str, Any]:
    """Conversations of all trajectories under `paths`, into `out`: passing.jsonl.zst and failing.jsonl.zst where a row,
    or a report of the tasks that were resolved, gives the verdict, else rollouts.jsonl.zst; what is left out, with its
    reason, rejected.jsonl.zst. `length` leaves out what is too long for training, `rules` what they say.

    Raises InputError where there are no trajectories, or the report is none.
    """
    files = list(trajectory_files(paths))
    if not files:
        raise InputError(f"no trajectory ({', '.join((*_SUFFIXES, *_TABLES))}) is under {', '.join(map(str, paths))}")
    sorter = _Sorter(None if resolved is None else resolved_tasks(resolved), length, rules or TrajectoryRules())
    sorter.count(files)
    with new_directory(out) as directory:
        with ExitStack() as stack:
            writers: dict[str, JsonlWriter] = {}

            def writer(name: str) -> JsonlWriter:
                if name not in writers:
                    writers[name] = stack.enter_context(jsonl_writer(directory / f"{name}.jsonl.zst"))
                return writers[name]

            for name in ("rejected", *(() if sorter.passed is None else ("passing", "failing"))):
                writer(name)
            for found in (found for file in files for found in held_in(file)):
                name, record = sorter.sort(found)
                writer(name).write(record)
        summary = {"files": len(files), **sorter.summary()}
        write_json(directory / "summary.json", summary)
    return summary


@dataclass
class _Sorter:
    """Sorts trajectories into streams, and counts what it does."""

    passed: frozenset[str] | None
    length: TrajectoryLength | None
    rules: TrajectoryRules
    kept: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    replies: Counter[str] = field(default_factory=Counter)
    resolved: ResolvedCounts = field(default_factory=ResolvedCounts)

    def count(self, files: Sequence[Path]) -> None:
        """Count how often each task was resolved, where a rule depends on it."""
        for found in (found for file in files for found in held_in(file)) if self.rules.keep else ():
            row = found.held if isinstance(found.held, dict) else {}
            verdict = None
            with suppress(UnusableTrajectory):  # it is told when it is sorted
                verdict = self._verdict(row, _name_in(row, found))
            if verdict is not None and row.get("outcome") != "environment":
                self.resolved.add(_name_in(row, found), verdict)

    def sort(self, found: Found) -> tuple[str, dict[str, Any]]:
        """The stream that a trajectory belongs to, and its record there."""
        try:
            record, verdict = self._record(found)
            orjson.dumps(record)
        except (TypeError, RecursionError):  # what a table holds and JSON does not; what is nested too deeply
            return self._rejected(printable(found.place, 300), "holds_what_json_cannot")
        except (UnusableTrajectory, ConversationError) as reason:
            return self._rejected(found.place, str(reason))
        name = "rollouts" if verdict is None else "passing" if verdict else "failing"
        self.kept[name] += 1
        self.tokens[name] += record.get("tokens", 0)
        return name, record

    def _record(self, found: Found) -> tuple[dict[str, Any], bool | None]:
        record, _ = conversation_in(found)
        _leave_out_swe_bench(record["id"], record["meta"])
        row = found.held if isinstance(found.held, dict) else {}
        if reason := _NOT_JUDGED.get(str(row.get("outcome"))):
            raise UnusableTrajectory(reason)
        verdict = self._verdict(row, record["id"])
        if self.rules.keep is not None:
            times = self.resolved.resolved[record["id"]]
            if not self.rules.keep.least <= times <= self.rules.keep.most:
                raise UnusableTrajectory("task_resolved_too_rarely_or_too_often")
            record["meta"]["resolved"] = self.resolved.of(record["id"])
        if rule := self.rules.broken_by(record["messages"]):
            raise UnusableTrajectory(f"reaches_for_{rule}")
        malformed, failed = failed_replies(row)
        masked = mask_replies(record["messages"], malformed, failed if self.rules.mask_failed_steps else malformed)
        if self.rules.as_text:
            try:
                record["messages"] = as_text_messages(record["messages"], record.pop("tools", None))
            except NotTextual:
                raise UnusableTrajectory("holds_the_markup_of_a_call") from None
        if self.length is not None:
            record["tokens"] = self.length.measured(record)
        self.replies["masked"] += masked
        self.replies["all"] += sum(message["role"] == "assistant" for message in record["messages"])
        return record, verdict

    def _verdict(self, row: Mapping[str, Any], name: str) -> bool | None:
        if self.passed is None or row.get("format") == 1:  # a report says which tasks, not which rollouts
            return _verdict(row)
        return name in self.passed

    def _rejected(self, place: str, reason: str) -> tuple[str, dict[str, Any]]:
        self.reasons[reason] += 1
        return "rejected", {"file": place, "reason": reason}

    def summary(self) -> dict[str, Any]:
        """Counts that add up. Raises InputError where nothing is kept."""
        if not self.kept:
            raise InputError(f"none of {self.reasons.total()} trajectories can be used: {', '.join(self.reasons)}")
        found: dict[str, Any] = {
            "trajectories": self.kept.total() + self.reasons.total(),
            "rollouts": dict(sorted(self.kept.items())),
            "rejected": dict(sorted(self.reasons.items())),
            "replies": self.replies["all"],
            "untrained_replies": self.replies["masked"],
        }
        if self.length is not None:
            found["tokens"] = dict(sorted(self.tokens.items()))
        if self.rules.keep is not None:
            found["tasks_resolved"] = self.resolved.tasks()
        return found


def _leave_out_swe_bench(task: str, meta: dict[str, Any]) -> None:
    """Raise UnusableTrajectory for a task that models are judged by, or of a repository that such tasks come from."""
    if any(holds_swe_bench_task(str(name)) for name in (task, meta.get("rollout"))):
        raise UnusableTrajectory("swe_bench_verified")
    known_as = (repository_of_task(task), meta.get("repository"))
    if any(isinstance(name, str) and is_named_like_swe_bench(name) for name in known_as):
        raise UnusableTrajectory("repository_of_swe_bench_verified")


def trajectory_files(paths: Iterable[Path]) -> Iterator[Path]:
    """The files among `paths`, and the trajectories and tables under its directories, in the order of their names."""
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist")
        if path.is_file():
            yield path
        else:
            rollouts = path / "trajectories"  # beside them lie predictions and counts
            inside = sorted(file for file in (rollouts if rollouts.is_dir() else path).rglob("*") if file.is_file())
            yield from (file for file in inside if file.name.endswith((*_SUFFIXES, *_TABLES)))


def held_in(file: Path) -> Iterator[Found]:
    """What a file holds: one trajectory, or one in each row of a table."""
    if file.name.endswith(_TABLES):
        columns = Columns(tuple((name,) for name in _MESSAGES), (*_VERDICTS, *_NAMES, *_OTHERS))
        for chunk in read([file], columns):
            for number, record in records_of(chunk):
                place = f"{file}, row {number}"
                if isinstance(record, BrokenRecord):
                    yield Found(place, f"{_task_of(file)}-{number}", None, str(record))
                    continue
                try:
                    held = without_nulls(record)
                except RecursionError:
                    yield Found(place, f"{_task_of(file)}-{number}", None, "is nested too deeply")
                    continue
                yield Found(place, f"{_task_of(file)}-{number}", held)
        return
    try:
        yield Found(str(file), _task_of(file), orjson.loads(file.read_bytes()))
    except orjson.JSONDecodeError:
        yield Found(str(file), _task_of(file), None, "no JSON")


def conversation_in(found: Found) -> tuple[dict[str, Any], bool | None]:
    """A conversation (id, messages, tools, source, meta), and the verdict where it is known.

    Raises UnusableTrajectory and ConversationError.
    """
    if found.reason is not None:
        raise UnusableTrajectory(found.reason)
    of = found.held if isinstance(found.held, dict) else {}
    key = next((name for name in _MESSAGES if of.get(name) is not None), None)
    said = of[key] if key else found.held
    said = _from_json(said) if isinstance(said, str) else said
    if not isinstance(said, list) or not said:
        raise UnusableTrajectory("no messages")
    plain = [_plain(each) for each in said if not _is_beside(each)]
    conversation = conversation_of({"messages": plain, "tools": of.get("tools"), "system": of.get("system")})
    messages = [_lean(message) for message in conversation.messages]
    for number in conversation.untrained:
        messages[number]["weight"] = 0
    if not any(message["role"] == "assistant" for message in messages):
        raise UnusableTrajectory("no turn of the assistant")
    info = of["info"] if isinstance(of.get("info"), dict) else {}
    meta = {
        "exit_status": of.get("exit_status") or info.get("exit_status"),
        "file": Path(found.place.partition(", row ")[0]).name,
        "repository": next((of[name] for name in _REPOSITORIES if of.get(name)), None),
        "rollout": of.get("trajectory_id") or of.get("traj_id"),
        "model": of.get("model") or of.get("model_name"),
    }
    tools = {"tools": conversation.tools} if conversation.tools else {}
    meta = {name: value for name, value in meta.items() if value is not None or name == "exit_status"}
    record = {"id": _name_in(of, found), "messages": messages, **tools, "source": _source(key, found), "meta": meta}
    return record, _verdict(of)


def _name_in(row: Mapping[str, Any], found: Found) -> str:
    return next((str(row[name]) for name in _NAMES if row.get(name)), found.default_id)


def _source(key: str | None, found: Found) -> str:
    if ", row " in found.place:
        return "table"
    if isinstance(found.held, dict) and found.held.get("format") == 1:
        return "davinci"
    return "swe-agent" if key == "history" else "mini-swe-agent"


def _verdict(row: Mapping[str, Any]) -> bool | None:
    said = next((row[name] for name in _VERDICTS if row.get(name) is not None), None)
    if said is None:
        return None
    if said not in (0, 1, True, False):
        raise UnusableTrajectory("a verdict that is neither true nor false")
    return bool(said)


def _is_beside(said: Any) -> bool:
    """Demonstrations, which are copies, and mini-swe-agent's note of how it ended."""
    return isinstance(said, dict) and (bool(said.get("is_demo")) or said.get("role") == "exit")


def _task_of(path: Path) -> str:
    """The name of a file without its ending: agents name it by the task."""
    ends = (*_SUFFIXES, *_TABLES)
    return next((path.name.removesuffix(end) for end in ends if path.name.endswith(end)), path.stem)


def _plain(said: Any) -> Any:
    """A message with the fields that Nebius' and SWE-agent's trajectories call otherwise."""
    if not isinstance(said, dict):
        return said
    message = {name: value for name, value in said.items() if value is not None or name == "content"}
    if "content" not in message and "value" not in message:
        message["content"] = said.get("text") or said.get("system_prompt")
    if message.get("role") == "ai":
        message["role"] = "assistant"
    thoughts = said.get("thinking_blocks")
    if isinstance(thoughts, list) and not message.get("reasoning_content"):
        message["reasoning_content"] = "\n".join(
            block["thinking"]
            for block in thoughts
            if isinstance(block, dict) and isinstance(block.get("thinking"), str)
        )
    return message


def _lean(message: dict[str, Any]) -> dict[str, Any]:
    """The fields that chat templates read."""
    if message["role"] not in ("system", "developer", "user", "assistant", "tool"):
        raise UnusableTrajectory("a message without a known role")
    return {name: value for name, value in message.items() if name in _KEPT}


def _from_json(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def resolved_tasks(report: Path) -> frozenset[str]:
    """Names of the tasks that were resolved: of SWE-bench's report (`resolved_ids`), or a JSON list of them."""
    held = read_json(report)
    names = held.get("resolved_ids") if isinstance(held, dict) else held
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{report} names no resolved tasks: give SWE-bench's report (resolved_ids), or a JSON list")
    return frozenset(names)
