"""One rollout from its task to its record: a sandbox, the loop in it, the patch, the verdict."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.agents.chat_model import ChatModel
from data_prep.agents.journal import RolloutJournal
from data_prep.agents.loop import AgentLimits, AgentLoop, AgentRun, ReplayDiffers
from data_prep.agents.prompts import AGENT_PROMPT
from data_prep.agents.records import Rollout
from data_prep.agents.tools import ToolBox
from data_prep.environments.collection import TaskCollection
from data_prep.environments.environment import Environment
from data_prep.environments.judge import Judge, Verdict
from data_prep.environments.sandbox.base import Limits, SandboxFailed, Session
from data_prep.environments.task import Task
from data_prep.io.errors import InputError

COMMAND_LIMITS = Limits(seconds=60, output_bytes=1 << 16)
_TRIES = 3  # of a rollout whose sandbox fails
_CHECK_SECONDS = 120.0


@dataclass(frozen=True)
class Workplace:
    """What the rollouts of a process share."""

    collection: TaskCollection
    model: ChatModel
    judge: Judge
    limits: AgentLimits
    command_limits: Limits
    settings: Mapping[str, Any]

    def rollout(self, name: str, number: int, journal_file: Path) -> Rollout:
        """Do a rollout to its end, or what is left of it. Raises InputError where the server, or the task, is none."""
        task = self.collection.task(name)
        place = self.collection.environment(task)
        journal = RolloutJournal(journal_file)
        said, patch, why = self._converse(task, place, journal)
        if patch is not None:
            verdict = self.judge.judge(task, place, patch)
        else:
            verdict = Verdict(
                task.instance_id, "infrastructure" if said.exit_status == "sandbox" else "unresolved", why
            )
        return Rollout(task, number, said, patch or b"", verdict, journal.restarts, self.settings)

    def _converse(self, task: Task, place: Environment, journal: RolloutJournal) -> tuple[AgentRun, bytes | None, str]:
        """The conversation, its patch, and why there is none. What is a sandbox's fault is tried again."""
        why = ""
        for _ in range(_TRIES):
            try:
                return self._try(task, place, journal)
            except ReplayDiffers:
                why = "what it did shows something else each time"
                journal.start_anew()
            except SandboxFailed as error:
                why = str(error)
                journal.load()
        return AgentRun([], exit_status="sandbox", exit_reason=why), None, why

    def _try(self, task: Task, place: Environment, journal: RolloutJournal) -> tuple[AgentRun, bytes | None, str]:
        session = self.judge.sandbox.open(place.image(), self.judge.scratch(), self.command_limits, "none")
        try:
            _check_ignorance(session, task)
            loop = AgentLoop(self.model, ToolBox(session, self.command_limits), self.limits, journal)
            said = loop.run(AGENT_PROMPT.messages(task))
            try:
                return said, session.changes(), ""
            except SandboxFailed as error:  # of a checkout that worked till now: it was made so
                return said, None, str(error)
        finally:
            session.close()


def _check_ignorance(session: Session, task: Task) -> None:
    """Raise InputError where a checkout holds the answer: the change's own commit, or any commit but its one.

    Raises SandboxFailed where git cannot tell.
    """
    script = 'git cat-file -e "$0^{commit}" 2>/dev/null && echo known; git rev-list --all --count'
    told = session.run(["/bin/sh", "-c", script, task.head_commit or "none"], seconds=_CHECK_SECONDS)
    words = told.output.split()
    if told.returncode or not words or not words[-1].isdigit():
        raise SandboxFailed(f"git cannot tell what the checkout holds: {told.output[-200:].strip()}")
    if words != ["1"]:
        raise InputError(f"the checkout of {task.instance_id} holds more than its base commit: build the task again")
