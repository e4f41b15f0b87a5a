"""What a stage takes in a layout: bytes by kind, seconds by kind, and what follows from them. Torch-free."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from megatron_davinci.config.stage import StageRecipe
from megatron_davinci.data.documents import Span
from megatron_davinci.data.rows import PlannedRow, RowRules
from megatron_davinci.models.config import ModelConfig
from megatron_davinci.models.flops import training_flops
from megatron_davinci.plan.devices import Device
from megatron_davinci.plan.lengths import DocumentLengths, squared_lengths
from megatron_davinci.plan.memory import RankMemory, fullest_rank
from megatron_davinci.plan.pipeline_time import even_rows_seconds, schedule_seconds
from megatron_davinci.plan.seconds import Row, RowSeconds, Timer
from megatron_davinci.plan.shapes import LayerShapes, PlannedLayout

BATCHES = 2
"""Global batches that an estimate is the mean of."""


@dataclass(frozen=True)
class Workload:
    """What a stage trains in a step, on the mean of some batches. `units`: of each batch; `tokens` in one, and the sum
    of its `squares` of lengths; `rows`: of full width that its tokens fill."""

    units: Sequence[Sequence[Sequence[Span]]]
    tokens: float
    squares: float
    rows: float

    @classmethod
    def of(cls, stage: StageRecipe, lengths: DocumentLengths) -> "Workload":
        """Batches drawn from lengths, the same at every call."""
        units = lengths.batches(stage, BATCHES)
        tokens = float(np.mean([sum(span.length for unit in batch for span in unit) for batch in units]))
        squares = float(np.mean([squared_lengths(batch) for batch in units]))
        return cls(units, tokens, squares, tokens / (stage.seq_length * stage.batch.micro_batch_size))


@dataclass(frozen=True)
class Estimate:
    """What a stage of a model of `num_layers` takes on so many GPUs.

    `memory`: of the fullest rank; `seconds`: of a step, by kind; `tokens`: of documents in a step; `flops`: the
    model's, of a step; `padding`: share of the rows that is no document's.
    """

    stage: StageRecipe
    num_layers: int
    layout: PlannedLayout
    device: Device
    memory: RankMemory
    seconds: Mapping[str, float]
    tokens: float
    flops: float
    padding: float

    @property
    def step_seconds(self) -> float:
        """Seconds of one optimizer step."""
        return sum(self.seconds.values())

    @property
    def tokens_per_second_per_gpu(self) -> float:
        """Tokens of documents."""
        return self.tokens / self.step_seconds / self.layout.gpus

    @property
    def mfu(self) -> float:
        """Model FLOPs over the device's bf16 peak, or FP8's where products compute in it."""
        peak = self.device.flops * (2 if self.layout.fp8 else 1)
        return self.flops / self.step_seconds / self.layout.gpus / peak


def quick_seconds(timer: Timer, workload: Workload) -> float:
    """Seconds of a step whose rows all cost the same: a formula, for ranking layouts and for published runs."""
    micro_batches = even_micro_batches(workload, timer.layout)
    replicas = timer.layout.replicas
    share = workload.tokens / replicas / micro_batches
    row = timer.row(Row(share, workload.squares / replicas / micro_batches, share))
    work, waits = even_rows_seconds(timer, row, micro_batches, timer.hop(share))
    layers = timer.layout.parallel.layers_by_rank(timer.shapes.num_layers)[0]
    return work + waits + timer.replicas(layers * row.forward, layers * row.backward) + timer.optimizer()


def even_micro_batches(workload: Workload, layout: PlannedLayout) -> int:
    """How many full rows each replica would have."""
    multiple = layout.parallel.microbatch_multiple
    return max(1, ceil(workload.rows / (layout.replicas * multiple))) * multiple


def estimate(
    stage: StageRecipe, model: ModelConfig, layout: PlannedLayout, device: Device, workload: Workload
) -> Estimate:
    """The stage's rows as they would be dealt, through the schedule one by one."""
    timer = Timer(LayerShapes.of(model), layout, device)
    rules = RowRules.of(stage, model)
    found = [_batch_seconds(timer, rules, batch) for batch in workload.units]
    seconds = {kind: float(np.mean([each[kind] for each, _, _ in found])) for kind in found[0][0]}
    width = stage.seq_length * stage.batch.micro_batch_size  # a batch to come may fill a row that none here has
    micro_batches = max(most for _, _, most in found)
    room = np.mean([sum(row.width for row in rows) for _, rows, _ in found])
    return Estimate(
        stage=stage,
        num_layers=model.num_layers,
        layout=layout,
        device=device,
        memory=fullest_rank(timer.shapes, layout, width, micro_batches),
        seconds=seconds,
        tokens=workload.tokens,
        flops=training_flops(model, round(workload.tokens), round(workload.squares), round(workload.tokens)),
        padding=1 - workload.tokens / float(room),
    )


def _batch_seconds(
    timer: Timer, rules: RowRules, units: Sequence[Sequence[Span]]
) -> tuple[dict[str, float], list[PlannedRow], int]:
    """(seconds by kind, all rows, micro-batches of the replica with the most) of one global batch."""
    dealt = rules.deal([rules.unit_of(list(unit)) for unit in units], timer.layout.replicas)
    lengths = [[span.length for span in unit] for unit in units]
    slowest, kinds = 0.0, dict[str, float]()
    for rows in dealt:
        timed = [timer.row(_row(row, lengths)) for row in rows]
        hop = timer.hop(float(np.mean([row.width for row in rows])))
        seconds = schedule_seconds(timer, timed, hop)
        if seconds > slowest:
            slowest, kinds = seconds, _by_kind(timer, timed, seconds)
    return kinds, [row for rows in dealt for row in rows], max(map(len, dealt))


def _row(row: PlannedRow, lengths: Sequence[Sequence[int]]) -> Row:
    inside = [length for number in row.units for length in lengths[number]]
    return Row(row.width, float(sum(length**2 for length in inside)), float(sum(inside)))


def _by_kind(timer: Timer, rows: Sequence[RowSeconds], replica: float) -> dict[str, float]:
    layers = timer.layout.parallel.layers_by_rank(timer.shapes.num_layers)
    mean = timer.shapes.num_layers / timer.layout.parallel.pipeline
    head = sum(row.head_forward + row.head_backward for row in rows) / timer.layout.parallel.pipeline
    exchange = mean * sum(row.exchange for row in rows)
    work = mean * sum(row.forward + row.backward for row in rows) - exchange
    mean_row = _mean_row(rows)
    return {
        "layers": work,
        "tensor and context exchange": exchange,
        "output layer": head,
        "pipeline": max(0.0, replica - work - exchange - head),  # what ranks wait for each other
        "replicas": timer.replicas(layers[0] * mean_row.forward, layers[0] * mean_row.backward),
        "optimizer": timer.optimizer(),
    }


def _mean_row(rows: Sequence[RowSeconds]) -> RowSeconds:
    return RowSeconds(*(float(np.mean(values)) for values in zip(*rows, strict=True)))
