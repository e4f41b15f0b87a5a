"""Every layout that a stage may have on so many GPUs, and the best of them. Torch-free.

Layouts are those that the recipe's own checks let pass. A formula for rows alike ranks them; the first are estimated
row by row. No published sweep tells whether the ranking is right: neighbours of it are to be measured
(`davinci bench train --grid`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from data_prep import InputError
from megatron_davinci.config.stage import StageRecipe, check_stage
from megatron_davinci.models.config import ModelConfig
from megatron_davinci.models.parallel_layout import MegatronOptions
from megatron_davinci.plan.devices import Device
from megatron_davinci.plan.estimate import Estimate, Workload, estimate, even_micro_batches, quick_seconds
from megatron_davinci.plan.memory import MARGIN, fullest_rank
from megatron_davinci.plan.seconds import Timer
from megatron_davinci.plan.shapes import MOST_CONTEXT, LayerShapes, PlannedLayout

_MOST_TENSOR, _MOST_PIPELINE = 8, 64
_ESTIMATED = 3  # times as many layouts as are asked for are estimated row by row
_UNEVEN = ("num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage")
SEARCHED = (
    "tensor_model_parallel_size", "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size",
    *_UNEVEN, "context_parallel_size", "sequence_parallel", "recompute_granularity", "recompute_method",
    "recompute_num_layers", "recompute_modules",
)  # fmt: skip
"""Fields of Megatron's that a search varies; precision, optimizer and overlaps stay as the recipe has them."""


_Ranked = tuple[float, int, StageRecipe, PlannedLayout]  # seconds, number, and what takes them


@dataclass(frozen=True)
class SearchResult:
    """The `best` layouts, fastest first; `tried`: how many are legal; `fitting`: how many of them fit; `nearest`: the
    bytes of the one that needs least, and the stage in it."""

    best: list[Estimate]
    tried: int
    fitting: int
    nearest: tuple[float, StageRecipe] | None


def search(
    stage: StageRecipe, model: ModelConfig, gpus: int, device: Device, workload: Workload, top: int
) -> SearchResult:
    """The `top` fastest layouts among those that fit with the margin."""
    shapes, tried = LayerShapes.of(model), 0
    ranked: list[_Ranked] = []
    nearest: tuple[float, StageRecipe] | None = None
    for candidate in legal_layouts(stage, model, gpus, device):
        tried += 1
        layout = planned(candidate, gpus, device)
        width = stage.seq_length * stage.batch.micro_batch_size
        peak = fullest_rank(shapes, layout, width, even_micro_batches(workload, layout)).total
        if nearest is None or peak < nearest[0]:
            nearest = peak, candidate
        if peak * (1 + MARGIN) <= device.memory:
            ranked.append((quick_seconds(Timer(shapes, layout, device), workload), len(ranked), candidate, layout))
    ranked.sort()
    some = [(candidate, layout) for _, _, candidate, layout in _different(ranked, _ESTIMATED * top)]
    found = [estimate(candidate, model, layout, device, workload) for candidate, layout in some]
    best = _one_of_each_kind(sorted(found, key=lambda each: each.step_seconds))
    return SearchResult(best[:top], tried, len(ranked), nearest)


def _one_of_each_kind(found: list[Estimate]) -> list[Estimate]:
    """Without layouts that differ in the split of layers alone."""
    kept: dict[object, Estimate] = {}
    for each in found:
        parallel = each.layout.parallel
        sizes = (parallel.tensor, parallel.pipeline, parallel.model_chunks, parallel.context)
        kept.setdefault((sizes, str(each.layout.recompute)), each)
    return list(kept.values())


def planned(stage: StageRecipe, gpus: int, device: Device) -> PlannedLayout:
    """A stage's layout on so many devices."""
    return PlannedLayout.of(stage.megatron, gpus, stage.batch.micro_batch_size, device.is_gpu)


def _different(ranked: list[_Ranked], count: int) -> list[_Ranked]:
    """The first of each kind, so that what is estimated is not one layout in many variants; then others."""
    seen: set[object] = set()
    first: list[_Ranked] = []
    rest: list[_Ranked] = []
    for entry in ranked:
        parallel = entry[3].parallel
        key = (parallel.tensor, parallel.pipeline, parallel.context, str(entry[3].recompute))
        (rest if key in seen else first).append(entry)
        seen.add(key)
    return (first[: count // 2 + 1] + rest)[:count]


def legal_layouts(stage: StageRecipe, model: ModelConfig, gpus: int, device: Device) -> Iterator[StageRecipe]:
    """The stage in every layout that its checks let pass and whose replicas fill the GPUs."""
    for fields in _parallel_fields(model, gpus, device):
        megatron = MegatronOptions.of({**_kept(stage.megatron.given), **fields})
        sizes = {layers // megatron.layout.model_chunks for layers in megatron.layout.layers_by_rank(model.num_layers)}
        for recompute in _recompute_fields(max(sizes)):
            candidate = replace(stage, megatron=MegatronOptions.of({**megatron.given, **recompute}))
            if candidate.batch.unit != "tokens" and gpus // candidate.layout.ranks_per_replica > (
                candidate.batch.global_batch_size
            ):
                continue
            try:
                check_stage(candidate, model)
            except InputError:
                continue
            yield candidate


def _kept(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name not in SEARCHED}


def _parallel_fields(model: ModelConfig, gpus: int, device: Device) -> Iterator[dict[str, Any]]:
    for tensor in _powers(min(_MOST_TENSOR, device.gpus_per_node)):
        for context in _powers(MOST_CONTEXT):
            for pipeline in range(1, min(_MOST_PIPELINE, model.num_layers) + 1):
                if gpus % (tensor * context * pipeline):
                    continue
                for split in _pipeline_fields(model.num_layers, pipeline):
                    yield {
                        "tensor_model_parallel_size": tensor,
                        "context_parallel_size": context,
                        "pipeline_model_parallel_size": pipeline,
                        "sequence_parallel": tensor > 1,
                        **split,
                    }


def _powers(most: int) -> list[int]:
    return [1 << power for power in range(most.bit_length()) if 1 << power <= most]


def _pipeline_fields(num_layers: int, pipeline: int) -> Iterator[dict[str, Any]]:
    """Chunks and fewer layers on the ranks that have the embedding and the output layer besides."""
    if pipeline == 1:
        yield {}
        return
    for chunks in range(1, num_layers // pipeline + 1):
        virtual = {"virtual_pipeline_model_parallel_size": chunks if chunks > 1 else None}
        if num_layers % (pipeline * chunks) == 0:
            yield virtual
        share = num_layers / pipeline
        fewer = [layers for layers in range(chunks, int(share) + 1, chunks) if layers < share]
        last = [each for each in fewer if (num_layers - each) % ((pipeline - 1) * chunks) == 0]
        for layers in last[-1:]:
            yield {**virtual, _UNEVEN[1]: layers}
        if pipeline > 2:
            both = [
                (first, layers)
                for layers in fewer
                for first in range(layers, int(share) + 2 * chunks, chunks)
                if first % chunks == 0 and (num_layers - first - layers) % ((pipeline - 2) * chunks) == 0
            ]
            for first, layers in sorted(both, key=lambda pair: (-pair[1], abs(pair[0] - share)))[:1]:
                yield {**virtual, _UNEVEN[0]: first, _UNEVEN[1]: layers}


def _recompute_fields(chunk: int) -> Iterator[dict[str, Any]]:
    yield {}
    yield {"recompute_granularity": "selective", "recompute_modules": ["mlp"]}
    yield {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    for layers in sorted({max(1, chunk // 4), max(1, chunk // 2), chunk * 3 // 4}):
        if 0 < layers < chunk:
            yield {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": layers}
