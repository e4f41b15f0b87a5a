"""The prompts of benchmarks as tasks of EleutherAI's lm-eval: what is asked is the same, word for word."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import orjson
import yaml

from data_prep.io.errors import InputError
from data_prep.io.files import new_directory
from megatron_davinci.evaluate.tasks.data import TaskData
from megatron_davinci.evaluate.tasks.task import BenchmarkTask


def export_prompts(tasks: Sequence[BenchmarkTask], data: Path, out: Path) -> Iterator[str]:
    """Write OUT/TASK.yaml and OUT/TASK.jsonl of each; gives the name of each of lm-eval's tasks. Raises InputError."""
    if not tasks:
        raise InputError("--tasks names none: give one at least")
    read = [TaskData.read(task, data) for task in tasks]
    with new_directory(out) as part:
        for each in read:
            name = each.task.name
            rows = [{"id": question.id, "prompt": each.task.prompt(question)} for question in each.questions]
            lines = b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
            (part / f"{name}.jsonl").write_bytes(lines)
            (part / f"{name}.yaml").write_text(yaml.safe_dump(_task(each.task, out.resolve() / f"{name}.jsonl")))
    yield from (f"davinci_{each.task.name}" for each in read)


def _task(task: BenchmarkTask, file: Path) -> dict[str, object]:
    """The settings of a task of lm-eval. Its own score is that of an empty answer: it is there for the texts."""
    return {
        "task": f"davinci_{task.name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "",
        "target_delimiter": "",
        "generation_kwargs": {
            "until": list(task.settings.stop),
            "max_gen_toks": task.settings.max_tokens,
            "do_sample": False,
        },
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": task.settings.version},
    }
