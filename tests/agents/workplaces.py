"""Where the tests' agents work: real tasks, a real sandbox, a model behind a real server."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.agents.chat_model import ChatModel, ModelSettings
from data_prep.agents.loop import AgentLimits
from data_prep.agents.model_server import ModelServer
from data_prep.agents.records import rollout_record
from data_prep.agents.working import COMMAND_LIMITS, Workplace
from data_prep.environments.collection import TaskCollection
from data_prep.environments.judge import Judge
from data_prep.environments.sandbox.bubblewrap import BubblewrapSandbox
from data_prep.environments.scratch import ScratchNames

SETTINGS = ModelSettings("scripted")


@contextmanager
def workplace(
    tasks: TaskCollection,
    server: str,
    folder: Path,
    limits: AgentLimits | None = None,
    patience: float = 20.0,
    reply_seconds: float = 20.0,
) -> Iterator[Workplace]:
    """A workplace that is closed at the end."""
    scratch = ScratchNames(folder)
    model = ChatModel(ModelServer(server, reply_seconds), SETTINGS, patience)
    judge = Judge(BubblewrapSandbox(), scratch, "none")
    try:
        yield Workplace(tasks, model, judge, limits or AgentLimits(steps=12), COMMAND_LIMITS, asdict(SETTINGS))
    finally:
        model.close()
        scratch.close()


def record_of(place: Workplace, name: str, folder: Path, number: int = 1) -> dict[str, Any]:
    """The record of a rollout."""
    return rollout_record(place.rollout(name, number, folder / f"{name}.{number}.jsonl"))
