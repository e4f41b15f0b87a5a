"""The sections of a report, in the order in which a page has them. Torch-free.

A section of a run is a function (runs: Sequence[RunData]) -> PageSection | None, where None leaves it out; runs given
together are laid over each other. A section of a corpus is a function (CorpusData) -> PageSection | None.
`register(name, function)` adds one at the end.
"""

from typing import Any

from data_prep.io.registry import Registry

_RUN = "megatron_davinci.report.run_sections"
_READ = "megatron_davinci.report.read_sections"
_CORPUS = "megatron_davinci.report.corpus_sections"

RUN_SECTIONS: Registry[Any] = Registry(
    "section of a run's report",
    {
        "summary": f"{_RUN}:run_summary",
        "loss": f"{_RUN}:run_loss",
        "held_out": f"{_RUN}:run_held_out",
        "reward": f"{_RUN}:run_reward",
        "curriculum": f"{_RUN}:run_curriculum",
        "lengths": f"{_RUN}:run_lengths",
        "time": f"{_RUN}:run_time",
        "plan": "megatron_davinci.report.plan_section:run_plan",
        "data": f"{_RUN}:run_data",
        "others": f"{_RUN}:run_others",
        "rollouts": f"{_READ}:run_rollouts",
        "answers": f"{_READ}:run_answers",
        "setup": f"{_READ}:run_setup",
    },
)
"""Functions (runs) -> PageSection | None."""

CORPUS_SECTIONS: Registry[Any] = Registry(
    "section of a corpus's report",
    {
        "summary": f"{_CORPUS}:corpus_summary",
        "sources": f"{_CORPUS}:corpus_sources",
        "lengths": f"{_CORPUS}:corpus_lengths",
        "tasks": "megatron_davinci.report.task_sections:corpus_tasks",
        "trajectories": "megatron_davinci.report.trajectory_sections:corpus_trajectories",
        "benchmarks": "megatron_davinci.report.benchmark_sections:corpus_benchmarks",
        "rejected": f"{_CORPUS}:corpus_rejected",
        "leakage": f"{_CORPUS}:corpus_leakage",
        "samples": f"{_CORPUS}:corpus_samples",
    },
)
"""Functions (CorpusData) -> PageSection | None."""
