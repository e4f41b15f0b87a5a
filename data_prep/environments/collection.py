"""A directory of tasks as it lies on disk: tasks/ID/{task.json,tree}, environments/FINGERPRINT, rejected.jsonl."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.environments.environment import Environment
from data_prep.environments.interpreters import interpreter
from data_prep.environments.log_parsers import LogParser, no_parser, swe_bench_parser
from data_prep.environments.task import Task, is_name
from data_prep.environments.testing import is_pytest
from data_prep.io.errors import InputError
from data_prep.io.files import read_json


@dataclass(frozen=True)
class TaskCollection:
    """Raises InputError where a directory is none."""

    folder: Path

    def __post_init__(self) -> None:
        if not (self.folder / "tasks").is_dir():
            raise InputError(f"{self.folder} holds no tasks/: make it with davinci data environments build")

    def ids(self) -> list[str]:
        """Names of all tasks, in order."""
        return sorted(path.parent.name for path in (self.folder / "tasks").glob("*/task.json"))

    def tasks(self) -> Iterator[Task]:
        """All tasks, in order."""
        return map(self.task, self.ids())

    def task(self, name: str) -> Task:
        """A task by its id. Raises InputError where it is not there."""
        path = self.folder / "tasks" / name / "task.json"
        if not is_name(name) or not path.is_file():
            raise InputError(f"{self.folder} has no task {name}: see davinci data environments inspect {self.folder}")
        task = Task.from_json(read_json(path))
        if task.install_config is None or not task.fail_to_pass:
            raise InputError(f"{path} names no recipe, or no test that must pass: build the task again")
        return task

    def environment(self, task: Task) -> Environment:
        """Where a task runs. Raises InputError where its interpreter or its parser is not at hand."""
        assert task.install_config is not None
        return Environment(
            tree=self.folder / "tasks" / task.instance_id / "tree",
            venv=self.folder / "environments" / task.fingerprint / "venv",
            python=interpreter(task.install_config.python),
            parser=parser_of(task),
        )


def parser_of(task: Task) -> LogParser:
    """What reads the output of a task's test command, which our plugin does where it is pytest. Raises InputError."""
    assert task.install_config is not None
    if is_pytest(task.install_config.test_cmd):
        return no_parser
    return swe_bench_parser(task.install_config.log_parser or task.repo)
