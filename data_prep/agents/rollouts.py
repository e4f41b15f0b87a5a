"""Rollouts of a model on many tasks, several at a time: OUT/trajectories, a record each; OUT/predictions and
OUT/tasks.jsonl, made of them.

A shard is one rollout of one task. Killed, and started again, each goes on at the step where it was.
"""

import base64
import math
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from data_prep.agents.chat_model import ChatModel, ModelSettings
from data_prep.agents.loop import AgentLimits
from data_prep.agents.model_server import ModelServer
from data_prep.agents.records import rollout_record
from data_prep.agents.working import COMMAND_LIMITS, Workplace
from data_prep.environments.collection import TaskCollection
from data_prep.environments.judge import TEST_LIMITS, Judge
from data_prep.environments.sandbox.base import Limits
from data_prep.environments.sandbox.registry import open_sandbox
from data_prep.environments.scratch import ScratchNames
from data_prep.io.errors import InputError
from data_prep.io.files import part_of, read_json, write_json
from data_prep.io.shards import ShardedStep, ShardNote, ShardWork

TRAJECTORIES, PREDICTIONS, TASKS = "trajectories", "predictions", "tasks.jsonl"
_JOURNALS = "journals"
_ENDING = ".traj.json"


@dataclass(frozen=True)
class RolloutsJob:
    """`rollouts` of `model` on each task of `envs` (all, or `instances`), `concurrency` at a time in a process.

    `server` is where the model is: an address that ends in /v1. `patience`: seconds to wait for it, `reply_seconds`:
    for one reply. `test_limits`: of the tests that judge.
    """

    envs: Path
    server: str
    model: ModelSettings
    rollouts: int = 4
    limits: AgentLimits = field(default_factory=AgentLimits)
    instances: tuple[str, ...] = ()
    concurrency: int = 1
    patience: float = 600.0
    reply_seconds: float = 1800.0
    sandbox: str = "bubblewrap"
    without: tuple[str, ...] = ()
    command_limits: Limits = COMMAND_LIMITS
    test_limits: Limits = TEST_LIMITS

    def step(self, out: Path) -> ShardedStep:
        """The work, rollout by rollout. Raises InputError on bad input."""
        self._check()
        names = tuple(dict.fromkeys(self.instances)) or tuple(TaskCollection(self.envs).ids())
        if not names:
            raise InputError(f"{self.envs} holds no task: nothing can be worked on")
        for name in names:
            TaskCollection(self.envs).task(name)
        shards = [Path(f"{name}.{number}") for name in names for number in range(1, self.rollouts + 1)]
        job = {
            "envs": str(self.envs.absolute()),
            "settings": self.settings(),
            "sandbox": self.sandbox,
            "command_seconds": self.command_limits.seconds,
            "test_seconds": self.test_limits.seconds,
        }
        return ShardedStep(out, job, shards, lambda rank, tasks: self._open(out), _complete, self.concurrency)

    def _check(self) -> None:
        least = {
            "--rollouts": self.rollouts,
            "--steps": self.limits.steps,
            "--max-tokens": self.limits.context_tokens,
            "--reply-tokens": self.model.reply_tokens,
            "--concurrency": self.concurrency,
        }
        for name, value in least.items():
            if value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")
        seconds = {
            "--seconds": self.limits.seconds,
            "--command-seconds": self.command_limits.seconds,
            "--reply-seconds": self.reply_seconds,
            "--patience": self.patience,
        }
        for name, limit in seconds.items():
            if not 0 < limit < math.inf:
                raise InputError(f"{name} is {limit:g}; it must be above 0")
        if not 0 <= self.model.temperature <= 10:
            raise InputError(f"--temperature is {self.model.temperature}; it must be from 0 to 10")

    def settings(self) -> dict[str, Any]:
        """What a rollout depends on, beside its task."""
        return {**asdict(self.model), **asdict(self.limits)}

    @contextmanager
    def _open(self, out: Path) -> Iterator[ShardWork]:
        folder = part_of(out.absolute())
        backend = open_sandbox(self.sandbox, folder, "black hole", self.without)
        scratch = ScratchNames(folder)
        model = ChatModel(ModelServer(self.server, self.reply_seconds), self.model, self.patience)
        place = Workplace(
            TaskCollection(self.envs),
            model,
            Judge(backend, scratch, limits=self.test_limits),
            self.limits,
            self.command_limits,
            self.settings(),
        )
        try:
            yield lambda shard, into: _do(place, shard.name, into)
        finally:
            if not isinstance(sys.exception(), KeyboardInterrupt):  # threads at work end with the process
                model.close()
                scratch.close()

    def summarize(self, notes: list[ShardNote]) -> ShardNote:
        """Counts over all rollouts, and sums of what they cost."""
        return summarize_rollouts(notes)


def _do(place: Workplace, name: str, folder: Path) -> ShardNote:
    task, _, number = name.rpartition(".")
    journal = folder / _JOURNALS / f"{name}.jsonl"
    record = rollout_record(place.rollout(task, int(number), journal))
    write_json(folder / TRAJECTORIES / f"{name}{_ENDING}", record)
    return {
        **{key: record[key] for key in ("instance_id", "rollout", "outcome", "exit_status", "events", "restarts")},
        "model": record["model"],
        "patch": _replaced(record["patch_base64"]) if record["patch"] is None else record["patch"],
        "steps": len(record["steps"]),
        "malformed": sum(bool(step["malformed"]) for step in record["steps"]),
        "uncounted": sum(not step["usage"]["prompt_tokens"] for step in record["steps"]),
        "seconds": round(sum(step["seconds"] for step in record["steps"]), 1),
        **record["usage"],
    }


def judged(notes: Sequence[ShardNote]) -> list[ShardNote]:
    """The rollouts that say something about the model: those of broken environments do not."""
    return [note for note in notes if note["outcome"] != "environment"]


def summarize_rollouts(notes: Sequence[ShardNote]) -> ShardNote:
    """Counts by outcome and by end, the tasks by how often they were resolved, means and sums."""
    by_task = _by_task(notes)
    of = Counter(f"{_resolved(group)} of {len(group)}" for group in map(judged, by_task.values()))
    events = sum((Counter(note["events"]) for note in notes), Counter[str]())
    means = {
        name: round(sum(note[key] for note in notes) / len(notes), 1)
        for name, key in (("steps", "steps"), ("tokens", "context_tokens"), ("seconds", "seconds"))
    }
    return {
        "tasks": len(by_task),
        "rollouts": len(notes),
        "outcomes": dict(Counter(note["outcome"] for note in notes).most_common()),
        "ended_by": dict(Counter(note["exit_status"] for note in notes).most_common()),
        "resolved": dict(sorted(of.items())),
        "equal_patches": sum(len(group) - _different(group) for group in by_task.values()),
        "mean": means,
        "prompt_tokens": sum(note["prompt_tokens"] for note in notes),
        "completion_tokens": sum(note["completion_tokens"] for note in notes),
        "malformed_replies": sum(note["malformed"] for note in notes),
        "replies_without_usage": sum(note["uncounted"] for note in notes),
        "tried_again": dict(sorted(events.items())),
        "restarts": sum(note["restarts"] for note in notes),
    }


def _by_task(notes: Sequence[ShardNote]) -> dict[str, list[ShardNote]]:
    found: dict[str, list[ShardNote]] = defaultdict(list)
    for note in notes:
        found[note["instance_id"]].append(note)
    return found


def _resolved(notes: Sequence[ShardNote]) -> int:
    return sum(note["outcome"] == "resolved" for note in notes)


def _different(notes: Sequence[ShardNote]) -> int:
    """How many patches differ; each empty one is its own."""
    patches = [note["patch"] for note in notes]
    return len(set(filter(None, patches))) + patches.count("")


def _complete(folder: Path, notes: list[ShardNote]) -> ShardNote:
    """Write what is made of all records."""
    lines = [
        {
            "instance_id": name,
            "rollouts": len(group),
            "judged": len(judged(group)),
            "resolved": _resolved(group),
            "different_patches": _different(group),
        }
        for name, group in _by_task(notes).items()
    ]
    (folder / TASKS).write_bytes(b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines))
    _write_predictions(folder, notes)
    shutil.rmtree(folder / _JOURNALS, ignore_errors=True)
    return {}


def _write_predictions(folder: Path, notes: Sequence[ShardNote]) -> None:
    """SWE-bench's file of predictions, for the first rollout of each task, for the second ..."""
    (folder / PREDICTIONS).mkdir(exist_ok=True)
    lines: dict[int, list[bytes]] = defaultdict(list)
    for note in notes:
        names = {"instance_id": note["instance_id"], "model_name_or_path": note["model"], "model_patch": note["patch"]}
        lines[note["rollout"]].append(orjson.dumps(names, option=orjson.OPT_APPEND_NEWLINE))
    for number, of_number in lines.items():
        (folder / PREDICTIONS / f"{number}.jsonl").write_bytes(b"".join(of_number))


def _replaced(patch: str) -> str:
    """A patch that is not UTF-8, as text with what is no character replaced: the format has no other."""
    return base64.b64decode(patch).decode("utf-8", "replace")


def read_records(folder: Path) -> Iterator[dict[str, Any]]:
    """The records of a directory of rollouts, in the order of their names. Raises InputError where it is none."""
    if not (folder / TRAJECTORIES).is_dir():
        raise InputError(f"{folder} holds no {TRAJECTORIES}/: make it with davinci data environments run")
    for path in sorted((folder / TRAJECTORIES).glob(f"*{_ENDING}")):
        yield read_json(path)
