"""The loop of an agent: ask the model, run what it calls, say what came of it, until it submits or a limit is hit.

Messages are kept as the model saw them. What a journal has recorded is replayed: its replies are taken, its calls run
again, and where one shows something else than it did, `ReplayDiffers` says that the rollout must begin anew.
"""

import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from time import monotonic
from typing import Any

from data_prep.agents.chat_model import ChatModel, ConversationEnded
from data_prep.agents.journal import RolloutJournal
from data_prep.agents.prompts import malformed_message
from data_prep.agents.replies import AgentReply, ToolCall, Usage
from data_prep.agents.tools import TOOLS, ToolBox, ToolResult

LIMITS_HIT = frozenset({"steps", "context", "time"})
_MOST_MALFORMED = 3  # replies in a row
_MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
# What differs between two runs of the same command and says nothing: durations, dates and times, names of temporary
# files, addresses of objects.
VARYING = re.compile(
    r"\d+(?:\.\d+)?(?=\s?(?:ms|s|sec|secs|seconds)\b)"
    rf"|\b(?:{_MONTHS})[a-z]*\s+\d{{1,2}}(?:,?\s+\d{{4}})?\b|\b\d{{1,2}}\s+(?:{_MONTHS})[a-z]*\b"
    r"|\b\d{4}-\d\d-\d\d\b|\b\d\d:\d\d(?::\d\d(?:\.\d+)?)?\b|\b(?:mon|tue|wed|thu|fri|sat|sun)\b"
    r"|\btmp[.\w]{6,}|0x[0-9a-f]{6,}",
    re.IGNORECASE,
)

_NOT_RUN = ToolResult("Not run: the work was handed in before.", failed=True)


class ReplayDiffers(Exception):
    """A recorded action showed something else when it was run again."""


@dataclass(frozen=True)
class AgentLimits:
    """`context_tokens`: of prompt and reply, as the server counts them; `seconds`: of replies and tools together."""

    steps: int = 100
    context_tokens: int = 131_072
    seconds: float = 3600.0


@dataclass(frozen=True)
class AgentStep:
    """What came of a reply: why it has no call that can be run, or for each of its calls whether it failed."""

    usage: Usage
    malformed: str
    failed: tuple[bool, ...]
    seconds: float


@dataclass
class AgentRun:
    """What an agent did. `events`: what had to be tried again, by kind. `exit_status`: submitted, the limit that was
    hit (steps, context, time), malformed, refused or server."""

    messages: list[dict[str, Any]]
    steps: list[AgentStep] = field(default_factory=list)
    events: "Counter[str]" = field(default_factory=Counter)
    exit_status: str = ""
    exit_reason: str = ""

    @property
    def context_tokens(self) -> int:
        """Tokens of the last prompt and its reply."""
        return self.steps[-1].usage.total if self.steps else 0


class AgentLoop:
    """One conversation of a model with tools in a sandbox."""

    def __init__(self, model: ChatModel, tools: ToolBox, limits: AgentLimits, journal: RolloutJournal) -> None:
        self._model, self._tools, self._limits, self._journal = model, tools, limits, journal
        self._recorded = iter(journal.recorded)

    def run(self, messages: list[dict[str, Any]]) -> AgentRun:
        """Go on from these messages to an end. Raises ReplayDiffers, SandboxFailed and InputError."""
        at = AgentRun(messages)
        while not at.exit_status:
            at.exit_status = self._limit_hit(at)
            if not at.exit_status:
                self._step(at)
        return at

    def _step(self, at: AgentRun) -> None:
        try:
            reply = self._reply(at)
        except ConversationEnded as end:
            at.exit_status, at.exit_reason = end.status, end.reason
        else:
            self._take(reply, at)

    def _limit_hit(self, at: AgentRun) -> str:
        if len(at.steps) >= self._limits.steps:
            return "steps"
        if at.context_tokens >= self._limits.context_tokens:
            return "context"
        return "time" if sum(step.seconds for step in at.steps) >= self._limits.seconds else ""

    def _reply(self, at: AgentRun) -> AgentReply:
        known = next(self._recorded, None)
        if known is not None:
            at.events.update(known["events"])
            return _reply_of(known["reply"])
        events: Counter[str] = Counter()
        room = self._limits.context_tokens - at.context_tokens
        try:
            reply = self._model.reply(at.messages, TOOLS, len(at.steps), room, events)
        finally:
            at.events.update(events)
        self._journal.add({"reply": asdict(reply), "events": events})
        return reply

    def _take(self, reply: AgentReply, at: AgentRun) -> None:
        """A reply and what follows from it, as the next messages."""
        at.messages.append(reply.message)
        results: list[ToolResult] = []
        seconds = reply.seconds
        if reply.refused:
            at.exit_status, at.exit_reason = "refused", reply.refused
        elif reply.malformed:
            at.messages.append({"role": "user", "content": malformed_message(reply.malformed)})
        else:
            results, taken = self._run(reply.calls)
            seconds += taken
            for call, result in zip(reply.calls, results, strict=True):
                at.messages.append({"role": "tool", "tool_call_id": call.id, "content": result.text})
        wrong = reply.malformed or ("refused" if reply.refused else "")
        at.steps.append(AgentStep(reply.usage, wrong, tuple(result.failed for result in results), seconds))
        if any(result.submitted for result in results):
            at.exit_status = "submitted"
        elif len(at.steps) >= _MOST_MALFORMED and all(step.malformed for step in at.steps[-_MOST_MALFORMED:]):
            at.exit_status, at.exit_reason = at.exit_status or "malformed", at.exit_reason or reply.malformed

    def _run(self, calls: tuple[ToolCall, ...]) -> tuple[list[ToolResult], float]:
        """What calls come to, in turn, and the seconds."""
        started = monotonic()
        results: list[ToolResult] = []
        for call in calls:
            over = any(result.submitted for result in results)
            results.append(_NOT_RUN if over else self._tools.run(call))
        known = next(self._recorded, None)
        if known is None:
            seconds = monotonic() - started
            self._journal.add({"results": [asdict(result) for result in results], "seconds": seconds})
            return results, seconds
        before = [ToolResult(**result) for result in known["results"]]
        if list(map(_lasting, before)) != list(map(_lasting, results)):
            raise ReplayDiffers
        return before, known["seconds"]


def _lasting(result: ToolResult) -> tuple[str, bool, bool]:
    return VARYING.sub("", result.text), result.failed, result.submitted


def _reply_of(held: dict[str, Any]) -> AgentReply:
    calls = tuple(ToolCall(**call) for call in held["calls"])
    return AgentReply(**{**held, "calls": calls, "usage": Usage(**held["usage"])})
