"""Time that a step loses because documents differ, over one of even work: `python benchmarks/lost_time.py`.

Cases are layouts of Qwen2.5 on H100s, with lengths drawn as daVinci-Dev's paper gives their means; seconds are the
planner's. Before: packed best-fit, every row as wide as seq_length, dealt to replicas in turn. Now: `data/rows.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.corpus import pack_documents
from megatron_davinci.data.rows import RowRules, RowUnit
from megatron_davinci.models.config import load_model_config
from megatron_davinci.models.parallel_layout import ParallelLayout
from megatron_davinci.plan.devices import find_device
from megatron_davinci.plan.pipeline_time import schedule_seconds
from megatron_davinci.plan.seconds import Row, RowSeconds, Timer
from megatron_davinci.plan.shapes import LayerShapes, PlannedLayout, Recompute

BATCHES, SEED, BOUND = 8, 500, 0.04
Lengths = NDArray[np.int64]


@dataclass(frozen=True)
class Case:
    """`size` samples a step or, `planned`, as many rows of a pack plan."""

    name: str
    model: str
    replicas: int
    layout: tuple[int, int, int, int]  # tensor, pipeline, chunks, context
    recompute: Recompute
    seq_length: int
    size: int = 1024
    planned: bool = False


FULL, NONE = Recompute("full"), Recompute()
CASES = (
    Case("72B 32k", "qwen2.5-72b", 2, (8, 8, 5, 4), NONE, 32768),
    Case("72B 32k from a plan", "qwen2.5-72b", 8, (4, 4, 1, 4), NONE, 32768, 224, planned=True),
    Case("72B 131k", "qwen2.5-72b", 2, (8, 8, 5, 4), FULL, 131072),
    Case("32B 131k", "qwen2.5-32b", 8, (8, 2, 1, 4), NONE, 131072),
    Case("7B 32k", "qwen2.5-7b", 32, (2, 1, 1, 2), FULL, 32768),
    Case("7B 131k", "qwen2.5-7b", 8, (2, 1, 1, 4), FULL, 131072),
    Case("7B 131k", "qwen2.5-7b", 32, (2, 1, 1, 4), FULL, 131072),
)


def pull_requests(draw: np.random.Generator, count: int) -> Lengths:
    """Log-normal up to 32k, with a mean of 6.9k."""
    return _between(draw, count, 8.52, 1.25, 64, 32768)


def documents(draw: np.random.Generator, seq_length: int, count: int) -> Lengths:
    """Pull requests and, where rows are long, the paper's share of rollouts: a mean of 42k, up to 128k."""
    if seq_length <= 32768:
        return pull_requests(draw, count)
    rollouts = draw.binomial(count, 0.0182)
    both = [pull_requests(draw, count - rollouts), _between(draw, rollouts, 10.55, 0.55, 2000, 131072)]
    found = np.concatenate(both)
    draw.shuffle(found)
    return found


def _between(draw: np.random.Generator, count: int, mean: float, deviation: float, least: int, most: int) -> Lengths:
    found = np.empty(0, np.int64)
    while len(found) < count:
        more = draw.lognormal(mean, deviation, 2 * count)
        found = np.concatenate([found, more[(more >= least) & (more <= most)].astype(np.int64)])
    return found[:count]


def timer_of(case: Case) -> tuple[Timer, RowRules]:
    """The planner's seconds, and the rules of the case's rows."""
    model = load_model_config(case.model)
    tensor, pipeline, chunks, context = case.layout
    parallel = ParallelLayout(tensor, pipeline, chunks if chunks > 1 else None, context, True)
    layout = PlannedLayout(parallel, case.replicas * parallel.ranks_per_replica, 1, case.recompute)
    weights = sum(layer.num_weights for layer in model.linear_layers)
    rules = RowRules(
        case.seq_length, 2 * context, 2 * context * tensor, parallel.microbatch_multiple,
        model.num_layers * weights + model.hidden_size * model.vocab_size, 2 * model.num_layers * model.query_size,
    )  # fmt: skip
    return Timer(LayerShapes.of(model), layout, find_device("h100")), rules


def packed(lengths: Lengths, rules: RowRules) -> list[list[int]]:
    """Best-fit rows, each the lengths in it."""
    plan = pack_documents(lengths, rules.max_width, "error", rules.document_alignment)
    return [[length for _, _, length in plan.sequence(number)] for number in range(len(plan))]


def row_seconds(timer: Timer, lengths: Sequence[int], width: int) -> RowSeconds:
    """Seconds of a row of documents, whose padding costs as much as short documents do."""
    padding = max(0, width - sum(lengths))
    squares = sum(length**2 for length in lengths) + 512 * padding
    return timer.row(Row(width, float(squares), float(max(1, sum(lengths)))))


def replicas_seconds(timer: Timer, shares: Sequence[Sequence[RowSeconds]]) -> float:
    """Seconds of the slowest replica."""
    return max(schedule_seconds(timer, rows, 0.0) for rows in shares)


def before(case: Case, timer: Timer, rules: RowRules, rows: list[list[int]]) -> float:
    """Rows of full width, filled up to as many for each replica, in turn."""
    multiple = case.replicas * rules.row_multiple
    filled = rows + [[] for _ in range(-len(rows) % multiple)]
    timed = [row_seconds(timer, row, case.seq_length) for row in filled]
    return replicas_seconds(timer, [timed[replica :: case.replicas] for replica in range(case.replicas)])


def now(case: Case, timer: Timer, rules: RowRules, units: list[list[int]]) -> float:
    """As training deals them."""
    known = [
        RowUnit(
            sum(-(-length // rules.document_alignment) * rules.document_alignment for length in unit),
            sum(rules.document_cost(length) for length in unit),
        )
        for unit in units
    ]
    shares = [
        [row_seconds(timer, [length for number in row.units for length in units[number]], row.width) for row in rows]
        for rows in rules.deal(known, case.replicas)
    ]
    return replicas_seconds(timer, shares)


def ideal(case: Case, timer: Timer, rows: list[list[int]]) -> float:
    """All work shared out evenly, and the bubble of a pipeline."""
    _, pipeline, chunks, _ = case.layout
    timed = [row_seconds(timer, row, case.seq_length) for row in rows]
    layers = timer.shapes.num_layers / pipeline
    work = layers * sum(row.forward + row.backward for row in timed)
    head = sum(row.head_forward + row.head_backward for row in timed)
    return (work + head) / case.replicas + (pipeline - 1) / chunks * work / len(timed)


def lost(case: Case) -> tuple[float, float]:
    """Share of the ideal that is lost before, and now."""
    timer, rules = timer_of(case)
    totals = np.zeros(3)
    for number in range(BATCHES):
        draw = np.random.default_rng(SEED + number)
        if case.planned:
            plan = packed(documents(draw, case.seq_length, 60000), rules)
            rows = [plan[index] for index in draw.permutation(len(plan))[: case.size]]
            units = rows
        else:
            lengths = documents(draw, case.seq_length, case.size)
            rows, units = packed(lengths, rules), [[length] for length in lengths.tolist()]
        totals += [before(case, timer, rules, rows), now(case, timer, rules, units), ideal(case, timer, rows)]
    return totals[0] / totals[2] - 1, totals[1] / totals[2] - 1


def main() -> None:
    """A line for each case."""
    print(f"{'case':22}{'GPUs':>6}{'DP':>5}{'before':>9}{'now':>8}   bound {BOUND:.0%}")
    for case in CASES:
        timer, _ = timer_of(case)
        was, remains = lost(case)
        print(f"{case.name:22}{timer.layout.gpus:>6}{case.replicas:>5}{was:>9.1%}{remains:>8.1%}", flush=True)


if __name__ == "__main__":
    main()
