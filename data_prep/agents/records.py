"""The record of a rollout: all that was said and done, how it ended, the patch, the verdict, and whose fault it was."""

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from data_prep.agents.loop import LIMITS_HIT, AgentRun
from data_prep.agents.prompts import AGENT_PROMPT
from data_prep.agents.tools import TOOLS
from data_prep.environments.judge import Verdict
from data_prep.environments.task import Task, is_text

FORMAT = 1


@dataclass(frozen=True)
class Rollout:
    """A rollout that has ended. `settings`: of the model and its limits."""

    task: Task
    number: int
    conversation: AgentRun
    patch: bytes
    verdict: Verdict
    restarts: int
    settings: Mapping[str, Any]


def outcome_name(exit_status: str, verdict: Verdict, replies: int) -> str:
    """What a rollout came to: resolved, or what kept it from that: environment, tampered, limits, model or tests.

    A server that fails at what a model said, and else works, is no fault of the environment: who breaks its server's
    parser would else be left out of every share. `replies`: how many there were.
    """
    if exit_status == "sandbox" or verdict.status == "infrastructure" or (exit_status == "server" and not replies):
        return "environment"
    if verdict.status in ("resolved", "tampered"):
        return verdict.status
    if exit_status in LIMITS_HIT:
        return "limits"
    return "tests" if verdict.status == "unresolved" and exit_status == "submitted" else "model"


def rollout_record(rollout: Rollout) -> dict[str, Any]:
    """A rollout as JSON, with `messages` and `tools` as a server is sent them."""
    said, task = rollout.conversation, rollout.task
    patch = (
        {"patch": rollout.patch.decode()}
        if is_text(rollout.patch)
        else {"patch": None, "patch_base64": base64.b64encode(rollout.patch).decode()}
    )
    return {
        "format": FORMAT,
        "instance_id": task.instance_id,
        "rollout": rollout.number,
        "trajectory_id": f"{task.instance_id}.{rollout.number}",
        "repo": task.repo,
        "model": rollout.settings["model"],
        "outcome": outcome_name(said.exit_status, rollout.verdict, len(said.steps)),
        "resolved": rollout.verdict.resolved,
        "exit_status": said.exit_status,
        "exit_reason": said.exit_reason,
        "tools": TOOLS,
        "messages": said.messages,
        "steps": [asdict(step) for step in said.steps],
        **patch,
        "verdict": asdict(rollout.verdict),
        "usage": {
            "prompt_tokens": sum(step.usage.prompt_tokens for step in said.steps),
            "completion_tokens": sum(step.usage.completion_tokens for step in said.steps),
            "context_tokens": said.context_tokens,
        },
        "events": dict(sorted(said.events.items())),
        "restarts": rollout.restarts,
        "settings": {**rollout.settings, "prompt": AGENT_PROMPT.version},
    }
