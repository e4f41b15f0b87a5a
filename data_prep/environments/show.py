"""Tasks as text for a person."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data_prep.environments.collection import TaskCollection
from data_prep.environments.task import Task
from data_prep.io.files import read_jsonl


def show_collection(envs: Path) -> Iterator[str]:
    """A line for each task, then how many changes were left out for which reason. Raises InputError."""
    collection = TaskCollection(envs)
    names = collection.ids()
    width = max(map(len, names), default=0)
    for task in map(collection.task, names):
        yield f"{task.instance_id:{width}}  {_facts(task)}"
    rejected = envs / "rejected.jsonl"
    reasons = Counter(str(line.get("reason")) for line in read_jsonl(rejected)) if rejected.exists() else Counter()
    yield f"{len(names)} tasks, {sum(reasons.values())} left out"
    for reason, count in reasons.most_common():
        yield f"{count:8,}  {reason}"


def _facts(task: Task) -> str:
    python = task.install_config.python if task.install_config else "?"
    lists = f"fail to pass {len(task.fail_to_pass):3}, pass to pass {len(task.pass_to_pass):4}"
    return f"{task.created_at[:10]}  Python {python:4}  {lists}  {' '.join(task.flags)}".rstrip()


def show_task(envs: Path, name: str) -> Iterator[str]:
    """A task as a whole. Raises InputError."""
    task = TaskCollection(envs).task(name)
    yield f"{task.instance_id}: {task.repo} at {task.base_commit}"
    yield _facts(task)
    yield ""
    yield task.problem_statement
    yield ""
    if task.install_config is not None:
        yield f"installed as of {task.install_config.exclude_newer or 'any day'}, environment {task.fingerprint}:"
        yield from (f"  {command}" for command in (*task.install_config.pre_install, *task.install_config.install))
        yield f"tests: {task.install_config.test_cmd}"
    for title, tests in (("fail to pass", task.fail_to_pass), ("pass to pass", task.pass_to_pass)):
        yield f"{title}:"
        yield from (f"  {test}" for test in tests)
    yield ""
    yield task.patch
    yield task.test_patch
