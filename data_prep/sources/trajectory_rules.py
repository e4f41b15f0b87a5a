"""What of trajectories is kept, and what of a kept one is trained."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import orjson

from data_prep.io.errors import DAMAGE, InputError
from data_prep.sources.commands import COMMAND_RULES, reaches_for
from data_prep.tokenize.conversation import Message

_BLOCK = "```"
_SHELLS = ("bash", "sh", "mswea_bash_command")


@dataclass(frozen=True)
class Kept:
    """Tasks are kept that were resolved from `least` to `most` times, over the rollouts that were judged."""

    least: int
    most: int

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """None for "all". Raises InputError for what is neither that nor K nor K-K."""
        if text == "all":
            return None
        least, dash, most = text.partition("-")
        try:
            found = cls(int(least), int(most) if dash else int(least))
        except ValueError:
            found = cls(1, 0)
        if not 0 <= found.least <= found.most:
            raise InputError(f"--keep is {text!r}; it must be all, or how often a task was resolved: 2, or 1-2")
        return found


@dataclass(frozen=True)
class TrajectoryRules:
    """`keep`: by how often a task was resolved. `leave_out`: names of COMMAND_RULES. `mask_failed_steps`: a reply is
    not trained whose call failed. `as_text`: tool calls and thoughts as text, see `trajectory_text`."""

    keep: Kept | None = None
    leave_out: tuple[str, ...] = ()
    mask_failed_steps: bool = False
    as_text: bool = False

    def __post_init__(self) -> None:
        if unknown := set(self.leave_out) - set(COMMAND_RULES):
            raise InputError(f"--leave-out is {sorted(unknown)[0]!r}; it must be one of {', '.join(COMMAND_RULES)}")

    def broken_by(self, messages: Sequence[Message]) -> str | None:
        """The rule that a conversation breaks."""
        for command in commands_of(messages) if self.leave_out else ():
            for rule in self.leave_out:
                if reaches_for(rule, command):
                    return rule
        return None


@dataclass
class ResolvedCounts:
    """How often each task was resolved, of how many judged rollouts."""

    resolved: "Counter[str]" = field(default_factory=Counter)
    judged: "Counter[str]" = field(default_factory=Counter)

    def add(self, task: str, resolved: bool) -> None:
        """Count a judged rollout."""
        self.judged[task] += 1
        self.resolved[task] += resolved

    def of(self, task: str) -> str:
        """Such as "2 of 4"."""
        return f"{self.resolved[task]} of {self.judged[task]}"

    def tasks(self) -> dict[str, int]:
        """ "2 of 4" -> the number of tasks."""
        found: dict[str, int] = defaultdict(int)
        for task in self.judged:
            found[self.of(task)] += 1
        return dict(sorted(found.items()))


def failed_replies(row: Mapping[str, Any]) -> tuple[list[bool], list[bool]]:
    """For each reply of one of our records: whether it was malformed, and whether one of its calls failed.

    Records of others do not tell: both are empty.
    """
    steps = row.get("steps")
    if row.get("format") != 1 or not isinstance(steps, list):
        return [], []
    try:
        return [bool(step["malformed"]) for step in steps], [any(step["failed"]) for step in steps]
    except DAMAGE:
        return [], []


def mask_replies(messages: Sequence[Message], malformed: Iterable[bool], failed: Iterable[bool]) -> int:
    """Give weight 0 to replies that nobody should learn; returns their number.

    A malformed reply is never trained: of its calls nothing could be kept as it was.
    """
    replies = [message for message in messages if message["role"] == "assistant"]
    count = 0
    for message, *reasons in zip(replies, malformed, failed, strict=False):
        if any(reasons):
            message["weight"] = 0
            count += 1
    return count


def commands_of(messages: Sequence[Message]) -> Iterator[str]:
    """The shell commands of a conversation: arguments `command` of calls, and blocks of bash in texts."""
    for message in messages:
        if message["role"] != "assistant":
            continue
        for call in message.get("tool_calls") or ():
            arguments = call["function"]["arguments"]
            command = arguments.get("command") if isinstance(arguments, dict) else None
            if isinstance(command, str) and "editor" not in call["function"]["name"]:
                yield command
        for block in message["content"].split(_BLOCK)[1::2]:
            language, _, body = block.partition("\n")
            if language.strip() in _SHELLS:
                yield body


def as_json_text(value: Any) -> str:
    """A value as text: a text as it is."""
    return value if isinstance(value, str) else orjson.dumps(value).decode()
