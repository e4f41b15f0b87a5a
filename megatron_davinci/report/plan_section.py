"""The section of a run's report that lays its plan beside what was measured. Torch-free."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from data_prep.io.errors import DAMAGE, InputError
from data_prep.io.files import read_json
from megatron_davinci.models.memory import GIB
from megatron_davinci.plan.describe import PLAN_FILE
from megatron_davinci.report.blocks import Cell, PageSection, Paragraph, ShownNumber, Table
from megatron_davinci.report.run_data import RunData

_HEAD = ("stage", "", "s/step", "tokens/s/GPU", "peak GiB")


def run_plan(runs: Sequence[RunData]) -> PageSection | None:
    """Predicted and measured seconds, rates and memory of each stage of the runs that have a plan."""
    blocks: list[object] = []
    for run in runs:
        if (run.directory / PLAN_FILE).is_file():
            blocks += _of_run(run)
    return PageSection("Plan", blocks) if blocks else None


def _of_run(run: RunData) -> Iterator[object]:
    plan, source = read_json(run.directory / PLAN_FILE), f"{run.name}/{PLAN_FILE}"
    try:
        yield Paragraph(
            f"{run.name}: planned for {plan['gpus']:,} {plan['gpu']}. Published runs are off by "
            f"{plan['time_error']['median']:.1%} in time (median; the worst by {plan['time_error']['worst']:.0%}), "
            f"measured memory by up to {plan['memory_error']:.0%}."
        )
        yield Table(_HEAD, [row for stage in plan["stages"] for row in _rows(run, plan, stage, source)])
    except DAMAGE as error:
        raise InputError(f"{run.directory / PLAN_FILE} is no plan of davinci: {error}") from None


def _rows(run: RunData, plan: Mapping[str, Any], stage: Mapping[str, Any], source: str) -> Iterator[list[Cell]]:
    name, own = stage["name"], stage["own"]
    if "refused" in own:
        return
    keys = ("step_seconds", "tokens_per_second_per_gpu", "peak_gib")
    formats = ("{:.3g}", "{:,.0f}", "{:.1f}")
    predicted = [
        ShownNumber(float(own[key]), shown.format(own[key]), f"{source}: {name}, {key}")
        for key, shown in zip(keys, formats, strict=True)
    ]
    yield [name, "predicted", *predicted]
    steps = [line for line in run.steps if line.get("stage") == name]
    if not steps:
        return
    measured = (
        median(line["seconds"] for line in steps),
        median(line["tokens_per_second"] for line in steps) / (run.starts[-1].ranks if run.starts else plan["gpus"]),
        max(line["peak_memory_bytes"] for line in steps) / GIB,
    )
    whence = f"{run.name}/metrics.jsonl: stage {name}"
    yield [name, "measured", *(ShownNumber(value, shown.format(value), whence)
                               for value, shown in zip(measured, formats, strict=True))]  # fmt: skip
