"""What the command line says, as a run; and what it prints beside the table."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.io.errors import InputError, escaped
from data_prep.io.files import json_bytes, read_jsonl
from megatron_davinci.evaluate.benchmarks.answers import SamplingOptions, read_models
from megatron_davinci.evaluate.benchmarks.run import SCORES_FOLDER, BenchmarkRun
from megatron_davinci.evaluate.model_names import named_models
from megatron_davinci.evaluate.tasks.data import check_data, check_text, task_files
from megatron_davinci.evaluate.tasks.registry import BENCHMARK_TASKS, named_tasks
from megatron_davinci.evaluate.tasks.task import BenchmarkTask
from megatron_davinci.evaluate.text_models.open import Engines, NamedModel

_MOST_CHARACTERS = 1500


def run_of(
    tasks: str, data: Path, out: Path | None, models: Sequence[str], sampling: SamplingOptions, engines: Engines,
    **options: Any,
) -> BenchmarkRun:  # fmt: skip
    """A run of these options. Raises InputError."""
    if out is None:
        raise InputError("no directory is named for the results: give --out DIR")
    if models or not options["rescore"]:
        named = [NamedModel(name, given) for name, given in named_models(models).items()]
    else:
        named = [NamedModel(name, each["model"]) for name, each in read_models(out).items()]
    return BenchmarkRun(_tasks(tasks, data), data, out, named, sampling, engines, **options)


def _tasks(names: str, data: Path) -> list[BenchmarkTask]:
    """Those that are named, or all whose files are there."""
    if names:
        return named_tasks(names)
    if not data.is_dir():
        raise InputError(f"--data {data} is no directory: see davinci eval benchmarks --check for what belongs there")
    found = [task for task in named_tasks(",".join(BENCHMARK_TASKS.names())) if task_files(task, data)]
    if not found:
        raise InputError(f"--data {data} holds no benchmark: see davinci eval benchmarks --data {data} --check")
    return found


def check_command(names: str, data: Path, as_json: bool) -> str:
    """What --check prints."""
    found = check_data(named_tasks(names or ",".join(BENCHMARK_TASKS.names())), data)
    return json_bytes(found).decode().rstrip() if as_json else check_text(found)


def shown_answers(run: BenchmarkRun, count: int) -> str:
    """The first answers of each model to each benchmark that are not right, as text."""
    return "".join(
        f"{line}\n" for task in run.tasks for model in run.models for line in _shown(run, task, model, count)
    )


def _shown(run: BenchmarkRun, task: BenchmarkTask, model: NamedModel, count: int) -> Iterator[str]:
    lines = read_jsonl(run.out / SCORES_FOLDER / model.name / f"{task.name}.jsonl")
    wrong = (line for line in lines if line["status"] != "right")
    for line, _ in zip(wrong, range(count), strict=False):
        yield f"--- {line['id']}, {model.name}: {line['status']} {escaped(line['reason'])}"
        if "prompt" not in line:
            yield f"(read as {line['parsed'] or 'nothing'}; its text is not to be shown)"
            continue
        yield escaped(line["prompt"][-_MOST_CHARACTERS:])
        yield f"--- {model.name} goes on:"
        yield escaped(line["answer"][:_MOST_CHARACTERS])
