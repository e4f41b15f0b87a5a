"""Files of benchmarks below a directory: what is there, and the questions in them. Nothing is fetched."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.io.errors import InputError
from data_prep.leakage.benchmarks import benchmark_rows, file_digest, instance_ids
from megatron_davinci.evaluate.tasks.task import BenchmarkTask, Question


@dataclass(frozen=True)
class TaskData:
    """The questions of a task, in the order of its files. `digests`: file -> sha256; `left_out`: of rows that cannot be
    asked, why, by file and line."""

    task: BenchmarkTask
    questions: Sequence[Question]
    digests: Mapping[str, str]
    left_out: Sequence[str]

    @classmethod
    def read(cls, task: BenchmarkTask, directory: Path) -> "TaskData":
        """Raises InputError where its files are missing, or hold no question."""
        paths = task_files(task, directory)
        if not paths:
            fetch = task.download.replace("DATA", str(directory))
            raise InputError(f"{task.name} is not below {directory}, as {task.files[0]}: {fetch}")
        questions, left_out, digests = list[Question](), list[str](), {}
        for path in paths:
            rows = list(benchmark_rows(path))
            digests[str(path.relative_to(directory))] = digest = file_digest(path)
            if not rows:
                continue
            for number, (row, name) in enumerate(zip(rows, instance_ids(rows), strict=True)):
                if why := _why_no_text(row) or task.check_row(row):
                    left_out.append(f"{path}, instance {number + 1}: {why}")
                else:
                    questions.append(Question(_id(task, row, path, number), row, digest, name))
        if not questions:
            raise InputError(
                f"{paths[0]} holds no question of {task.name}: {left_out[0] if left_out else 'it is empty'}"
            )
        _check_ids(questions, paths[0])
        return cls(task, questions, digests, left_out)


def task_files(task: BenchmarkTask, directory: Path) -> list[Path]:
    """The files of a task below a directory, none where they are missing."""
    for pattern in task.files:
        found = sorted(
            path for path in directory.glob(pattern) if path.is_file() and not path.match(task.leaves_out or "?")
        )
        if found:
            return found if task.all_files or path_is_split(found) else found[:1]
    return []


def path_is_split(paths: Sequence[Path]) -> bool:
    """Whether they are the parts of one table: test-00000-of-00002.parquet and so on."""
    return all("-of-" in path.name for path in paths)


def _why_no_text(row: Mapping[str, Any]) -> str:
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except ValueError:
        return "it holds half a surrogate pair, which is no text"
    return ""


def _id(task: BenchmarkTask, row: Mapping[str, Any], path: Path, number: int) -> str:
    if task.id_field is not None:
        return str(row[task.id_field])
    return f"{path.name.partition('.')[0]}/{number}" if task.all_files else f"{task.name}/{number}"


def _check_ids(questions: Sequence[Question], path: Path) -> None:
    seen = set[str]()
    for question in questions:
        if question.id in seen:
            raise InputError(f"{path} has two instances {question.id}: an instance must have an id of its own")
        seen.add(question.id)


def check_data(tasks: Sequence[BenchmarkTask], directory: Path) -> list[dict[str, Any]]:
    """What is there of each task: files, counts, sha256, licence, and the command that fetches what is missing."""
    found: list[dict[str, Any]] = []
    for task in tasks:
        facts: dict[str, Any] = {"task": task.name, "published": task.count, "licence": task.licence}
        if task_files(task, directory):
            data = TaskData.read(task, directory)
            facts |= {"instances": len(data.questions), "left_out": len(data.left_out), "files": dict(data.digests)}
        else:
            facts |= {"instances": 0, "files": {}, "download": task.download.replace("DATA", str(directory))}
        found.append(facts)
    return found


def check_text(found: Sequence[Mapping[str, Any]]) -> str:
    """What `check_data` found as text: a task a line, its files below."""
    lines = []
    for facts in found:
        count = f"{facts['instances']:,} of {facts['published']:,} instances" if facts["files"] else "missing"
        lines.append(f"{facts['task']:<15} {count:<28} {facts['licence']}")
        lines += [f"    {digest}  {name}" for name, digest in facts["files"].items()]
        if facts.get("left_out"):
            lines.append(f"    {facts['left_out']} rows cannot be asked")
        if "download" in facts:
            lines.append(f"    {facts['download']}")
    return "\n".join(lines)
