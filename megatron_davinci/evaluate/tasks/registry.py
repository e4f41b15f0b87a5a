"""Benchmarks by name; `register` adds one."""

from collections.abc import Sequence

from data_prep.io.registry import Registry
from megatron_davinci.evaluate.tasks.task import BenchmarkTask

_TASKS = "megatron_davinci.evaluate.tasks"

BENCHMARK_TASKS: Registry[type[BenchmarkTask]] = Registry(
    "benchmark",
    {
        "humaneval": f"{_TASKS}.code:HumanEval",
        "humaneval_plus": f"{_TASKS}.code:HumanEvalPlus",
        "gsm8k": f"{_TASKS}.mathematics:Gsm8k",
        "math500": f"{_TASKS}.mathematics:Math500",
        "omni_math": f"{_TASKS}.mathematics:OmniMath",
        "gpqa_main": f"{_TASKS}.choices:Gpqa",
        "scibench": f"{_TASKS}.scibench:SciBench",
        "super_gpqa": f"{_TASKS}.choices:SuperGpqa",
    },
    subclass_of="megatron_davinci.evaluate.tasks.task:BenchmarkTask",
)


def named_tasks(names: str) -> list[BenchmarkTask]:
    """Tasks named with commas between, each once. Raises InputError."""
    chosen: Sequence[str] = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    return [BENCHMARK_TASKS.get(name)() for name in chosen]
