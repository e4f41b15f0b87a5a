"""A plan as facts for JSON, and as lines for a person. Torch-free."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep import InputError
from data_prep.io.files import write_json
from megatron_davinci.config import Recipe, load_recipe, parse_recipe
from megatron_davinci.config.file import parse_overrides
from megatron_davinci.config.stage import StageRecipe
from megatron_davinci.models.config import load_model_config
from megatron_davinci.models.memory import GIB
from megatron_davinci.models.parallel_layout import FIELD_DEFAULTS
from megatron_davinci.plan.devices import Device, check_fp8_of
from megatron_davinci.plan.estimate import Estimate, Workload, estimate
from megatron_davinci.plan.lengths import stage_lengths
from megatron_davinci.plan.memory import MARGIN
from megatron_davinci.plan.search import SEARCHED, SearchResult, planned, search

# (median, worst) of the rows of benchmarks/published_throughput.csv: each by constants of its own software, fitted
# without it; and those of H100 and B200 by the constants that plans have, which hide no exchange of tensor parallelism.
MODEL_TIME_ERRORS, PLAN_TIME_ERRORS = (0.027, 0.35), (0.075, 0.75)
NOT_VALIDATED = "the ranking of layouts was not validated: measure those that are close (davinci bench train --grid)"
PLAN_FILE = "plan.json"
"""Of a run's directory."""
_SECONDS_A_DAY = 86400


def recipe_or_model(name: str, overrides: list[str]) -> Recipe:
    """A recipe file or, for a model's name or directory, a recipe of one stage in bf16 that trains it. Raises
    InputError."""
    if Path(name).suffix in (".yaml", ".yml"):
        return load_recipe(Path(name), overrides, with_weights=False)
    if Path(name).is_dir() and (Path(name) / "recipe.yaml").is_file():
        raise InputError(f"{name} is a directory with a recipe: give {Path(name) / 'recipe.yaml'}")
    load_model_config(name)
    values: dict[str, Any] = {
        "model": name,
        "megatron": {"bf16": True, "use_distributed_optimizer": True, "overlap_grad_reduce": True,
                     "overlap_param_gather": True},
        "data": {"seq_length": 32768, "long_documents": "drop",
                 "stages": [{"name": "mid-training", "blend": [{"corpus": "corpus"}]}]},
        "batch": {"global_batch_size": 1024},
        "schedule": {"lr": 8e-5},
        "checkpoint": {"dir": "run"},
    }  # fmt: skip
    return parse_recipe(_merged(values, parse_overrides(overrides)), with_weights=False)


def _merged(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, value in changes.items():
        before = merged.get(key)
        merged[key] = _merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return merged


def make_plan(recipe: Recipe, gpus: int, device: Device, lengths: Mapping[str | None, str], top: int) -> dict[str, Any]:
    """What each stage takes as it is, and in the `top` best layouts, which 0 leaves out. `lengths`: by a stage's name,
    or for all."""
    names = [stage.name for stage in recipe.data.stages]
    for name in lengths.keys() - {None, *names}:
        raise InputError(f"--lengths names stage {name}; the recipe has {', '.join(names)}")
    model = load_model_config(recipe.model)
    stages = []
    for index, name in enumerate(names):
        stage = recipe.stage(index)
        if stage.objective.grows_trees:
            raise InputError(
                f"stage {name} has objective {stage.objective.kind}, whose rollouts no plan covers: plan its training "
                f"on documents alone with data.stages.{index}.objective.kind=ntp"
            )
        check_fp8_of(device, stage)
        drawn = stage_lengths(stage, lengths.get(name, lengths.get(None)))
        workload = Workload.of(stage, drawn)
        prefix = "" if len(names) == 1 else f"data.stages.{index}."
        own, steps = _own(stage, gpus), drawn.num_steps(stage)
        found = search(stage, model, gpus, device, workload, top) if top else SearchResult([], 0, 0, None)
        facts = {
            "name": name,
            "seq_length": stage.seq_length,
            "fp8": stage.megatron.fp8 is not None,
            "batch": stage.batch.model_dump(),
            "lengths": drawn.describe(),
            "documents_dropped": drawn.dropped,
            "tokens_dropped": drawn.dropped_tokens,
            "steps": steps,
            "tokens_a_step": round(workload.tokens),
            "layouts": found.tried,
            "layouts_that_fit": found.fitting,
            "nearest": None if found.nearest is None else _describe_nearest(found.nearest, stage, prefix),
            "own": own
            or _describe_estimate(
                estimate(stage, model, planned(stage, gpus, device), device, workload), steps, stage, prefix
            ),
            "best": [_describe_estimate(each, steps, stage, prefix) for each in found.best],
        }
        stages.append(facts)
    return {
        "model": recipe.model,
        "gpus": gpus,
        "gpu": device.name,
        "gpu_memory_gib": device.memory_gib,
        "time_error": {"median": PLAN_TIME_ERRORS[0], "worst": PLAN_TIME_ERRORS[1]},
        "memory_error": MARGIN,
        "note": NOT_VALIDATED,
        "stages": stages,
    }


def keep_plan(recipe: Recipe, gpus: int, device: Device) -> None:
    """Write plan.json into the run's directory, for its report, in place of an older one. Raises InputError where no
    plan can be made."""
    plan = make_plan(recipe, gpus, device, {}, top=0)
    directory = Path(recipe.checkpoint.dir)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / PLAN_FILE, plan)


def _own(stage: StageRecipe, gpus: int) -> dict[str, Any] | None:
    """Why the recipe's own layout is none for so many GPUs, None where it is one."""
    needed = stage.layout.ranks_per_replica
    if gpus % needed:
        return {"refused": f"{needed:,} GPUs hold one replica, and {gpus:,} is no multiple of that"}
    if stage.batch.unit != "tokens" and gpus // needed > stage.batch.global_batch_size:
        batch = stage.batch
        said = f"{gpus // needed:,} replicas would share a batch of {batch.global_batch_size:,} {batch.unit}"
        return {"refused": said}
    return None


def _describe_nearest(nearest: tuple[float, StageRecipe], own: StageRecipe, prefix: str) -> dict[str, Any]:
    """The legal layout that needs the least memory."""
    peak, candidate = nearest
    overrides = _overrides(own.megatron.given, candidate.megatron.given, prefix)
    return {"overrides": overrides, "peak_gib": peak / GIB}


def _describe_estimate(found: Estimate, steps: int | None, own: StageRecipe, prefix: str) -> dict[str, Any]:
    """Facts about an estimate. `steps`: of the stage, where they are known; `prefix`: of the overrides that make its
    layout out of the stage's `own`."""
    parallel = found.layout.parallel
    days = found.step_seconds / _SECONDS_A_DAY
    return {
        "overrides": _overrides(own.megatron.given, found.stage.megatron.given, prefix),
        "tensor": parallel.tensor,
        "pipeline": parallel.pipeline,
        "chunks": parallel.model_chunks,
        "context": parallel.context,
        "replicas": found.layout.replicas,
        "layers": parallel.layers_by_rank(found.num_layers),
        "recompute": str(found.layout.recompute),
        "gib": {kind: value / GIB for kind, value in found.memory.kinds.items()},
        "peak_gib": found.memory.total / GIB,
        "fits": _fits(found),
        "seconds": dict(found.seconds),
        "step_seconds": found.step_seconds,
        "tokens_per_second_per_gpu": found.tokens_per_second_per_gpu,
        "mfu": found.mfu,
        "padding_fraction": found.padding,
        "days": None if steps is None else days * steps,
        "days_per_billion_tokens": days / found.tokens * 1e9,
    }


def _fits(found: Estimate) -> str:
    """Whether the peak is below the device's memory by the margin, within the margin, or beyond it."""
    if found.memory.total * (1 + MARGIN) <= found.device.memory:
        return "yes"
    return "perhaps" if found.memory.total <= found.device.memory * (1 + MARGIN) else "no"


def _overrides(own: Mapping[str, Any], new: Mapping[str, Any], prefix: str) -> list[str]:
    """key=value for each field in which a layout differs."""
    changed = []
    for name in SEARCHED:
        before, after = (given.get(name, FIELD_DEFAULTS.get(name)) for given in (own, new))
        if before != after:
            changed.append(f"{prefix}megatron.{name}={_written(after)}")
    return changed


def _written(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


_MARKS = {"?": "  ?: as much as the GPU has, within the error", "!": "  !: more than the GPU has"}
_COLUMNS = ("TP", "PP", "VPP", "CP", "DP", "recompute", "GiB", "s/step", "tokens/s/GPU", "MFU", "days")


def plan_text(plan: Mapping[str, Any]) -> str:
    """The plan for a person."""
    lines = [f"{plan['model']} on {plan['gpus']:,} {plan['gpu']} ({plan['gpu_memory_gib']:.4g} GiB each)"]
    for stage in plan["stages"]:
        lines += ["", *_stage_lines(stage)]
    lines += [
        "",
        "Predicted, not measured. Published runs of Megatron, all of full rows, are off by "
        f"{plan['time_error']['median']:.1%} in time (median; the worst by {plan['time_error']['worst']:.0%}), "
        f"measured memory by up to {plan['memory_error']:.0%}.",
        f"Beware: {plan['note']}.",
    ]
    return "\n".join(lines)


def _stage_lines(stage: Mapping[str, Any]) -> list[str]:
    batch, steps = stage["batch"], stage["steps"]
    lines = [
        f"stage {stage['name']}: {batch['global_batch_size']:,} {batch['unit']} a step, "
        f"{stage['tokens_a_step']:,} tokens, seq_length {stage['seq_length']:,}; "
        f"{'days are for 1B tokens' if steps is None else f'{steps:,} steps'}",
        f"  lengths: {stage['lengths']}",
        f"  {stage['layouts_that_fit']:,} of {stage['layouts']:,} layouts fit",
    ]
    days = "days" if steps is not None else "days/1B"
    rows = [["", *_COLUMNS[:-1], days], _cells("as it is", stage["own"], steps)]
    rows += [_cells(f"{number}.", each, steps) for number, each in enumerate(stage["best"], 1)]
    widths = [max(len(row[column]) for row in rows if len(row) > column) for column in range(len(rows[0]))]
    for row in rows:
        lines.append("  " + " ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=False)).rstrip())
    lines += ["  MFU is of the FP8 peak"] if stage["fp8"] else []
    lines += [said for mark, said in _MARKS.items() if any(mark in row[7] for row in rows[1:])]
    if "refused" in stage["own"]:
        lines.append(f"  as it is: {stage['own']['refused']}")
    for number, each in enumerate(stage["best"], 1):
        lines.append(f"  {number}. {' '.join(each['overrides']) or 'as it is'}")
    for heading, each in [("as it is", stage["own"]), ("1.", stage["best"][0] if stage["best"] else {})]:
        if "seconds" in each:
            lines.append(f"  {heading}: seconds: {_kinds(each['seconds'], 2)}")
            lines.append(f"  {heading}: GiB of the fullest rank: {_kinds(each['gib'], 1)}")
    return [*lines, *_none_fits(stage)]


def _none_fits(stage: Mapping[str, Any]) -> list[str]:
    """What to do where there is no layout to show."""
    if stage["best"]:
        return []
    if not stage["layouts"]:
        said = "the number of GPUs and seq_length must be multiples of what layouts need, and each replica needs work"
        return [f"  no layout is legal: {said}"]
    nearest = stage["nearest"]
    return [f"  no layout fits: the smallest takes {nearest['peak_gib']:,.1f} GiB "
            f"({' '.join(nearest['overrides']) or 'as it is'}); give more GPUs, or larger ones"]  # fmt: skip


def _cells(heading: str, facts: Mapping[str, Any], steps: int | None) -> list[str]:
    if "refused" in facts:
        return [heading, *["-"] * len(_COLUMNS)]
    mark = {"yes": "", "perhaps": "?", "no": "!"}[facts["fits"]]
    days = facts["days"] if steps is not None else facts["days_per_billion_tokens"]
    return [
        heading,
        *(str(facts[name]) for name in ("tensor", "pipeline", "chunks", "context", "replicas", "recompute")),
        f"{facts['peak_gib']:.1f}{mark}",
        f"{facts['step_seconds']:.2f}",
        f"{facts['tokens_per_second_per_gpu']:,.0f}",
        f"{facts['mfu']:.1%}",
        f"{days:.2f}" if days >= 1 else f"{days:.4f}",
    ]


def _kinds(values: Mapping[str, float], digits: int) -> str:
    return ", ".join(f"{kind} {value:.{digits}f}" for kind, value in values.items())
