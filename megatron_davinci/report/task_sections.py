"""The section of a report on tasks in environments. Torch-free."""

from collections.abc import Iterable
from typing import Any

from data_prep.environments.collection import TaskCollection
from data_prep.environments.task import Task
from megatron_davinci.report.blocks import Cell, PageSection, Paragraph, ShownNumber, Table, Text
from megatron_davinci.report.corpus_data import CorpusData
from megatron_davinci.report.numbers import number_text
from megatron_davinci.report.read_sections import evenly

_ROWS, _READ = 200, 3
_HEAD = ["task", "landed", "Python", "fail to pass", "pass to pass", "flags"]


def corpus_tasks(data: CorpusData) -> PageSection | None:
    """Tasks by name, and a few to read: what is wanted, and the change that did it."""
    blocks = [block for name in data.directories for block in _tasks_of(name, data)]
    return PageSection("Tasks that run", blocks) if blocks else None


def _tasks_of(name: str, data: CorpusData) -> Iterable[Any]:
    folder = data.directories[name]
    if not (folder / "tasks").is_dir():
        return
    collection = TaskCollection(folder)
    names = collection.ids()
    shown = [collection.task(each) for each in names[:_ROWS]]
    yield Table(_HEAD, [_row(task) for task in shown])
    if len(names) > _ROWS:
        yield Paragraph(f"{len(names) - _ROWS:,} more are shown by davinci data environments inspect {name}.")
    for number in evenly(range(len(names)), _READ):
        task = collection.task(names[number])
        yield Text(f"{task.instance_id}: what is wanted", task.problem_statement)
        yield Text(f"{task.instance_id}: what was done", task.patch)


def _row(task: Task) -> list[Cell]:
    python = task.install_config.python if task.install_config else ""
    source = f"{task.instance_id}/task.json"
    counts = (("FAIL_TO_PASS", task.fail_to_pass), ("PASS_TO_PASS", task.pass_to_pass))
    lengths = [ShownNumber(len(tests), number_text(len(tests), ""), f"{source}: {key}") for key, tests in counts]
    return [task.instance_id, task.created_at[:10], python, *lengths, ", ".join(task.flags)]
