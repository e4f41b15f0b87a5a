"""Seconds of one replica's micro-batches through a pipeline: by a formula for rows alike, by its schedule for others.

Torch-free.
"""

from collections.abc import Sequence
from functools import cache

from megatron_davinci.plan.seconds import RowSeconds, Timer

Operation = tuple[bool, int, int]  # forward?, micro-batch, chunk


def even_rows_seconds(timer: Timer, row: RowSeconds, micro_batches: float, hop: float) -> tuple[float, float]:
    """(seconds of the busiest rank's own work, seconds that it waits) for so many rows that cost the same."""
    parallel = timer.layout.parallel
    pipeline, chunks = parallel.pipeline, parallel.model_chunks
    layers = parallel.layers_by_rank(timer.shapes.num_layers)
    work = [count * (row.forward + row.backward) for count in layers]
    head = row.head_forward + row.head_backward
    busiest = max([*work[:-1], work[-1] + head])
    waits = (sum(work) - max(work)) / chunks + 2 * (pipeline - 1) * chunks * hop
    if pipeline > 1 and chunks == 1:
        waits += micro_batches * hop  # half of what interleaving overlaps
    return micro_batches * busiest, waits


def schedule_seconds(timer: Timer, rows: Sequence[RowSeconds], hop: float) -> float:
    """Seconds until the last rank has done all rows, one by one in Megatron's order: 1F1B, interleaved or not."""
    parallel = timer.layout.parallel
    pipeline, chunks = parallel.pipeline, parallel.model_chunks
    layers = [count / chunks for count in parallel.layers_by_rank(timer.shapes.num_layers)]
    if pipeline == 1:
        return sum(
            layers[0] * chunks * (row.forward + row.backward) + row.head_forward + row.head_backward for row in rows
        )
    orders = [_order(pipeline, chunks, len(rows), rank) for rank in range(pipeline)]
    place, clock, done = [0] * pipeline, [0.0] * pipeline, dict[tuple[bool, int, int, int], float]()
    lag = hop if chunks > 1 else 1.5 * hop
    moved = True
    while moved:
        moved = False
        for rank, order in enumerate(orders):
            while place[rank] < len(order):
                operation = order[place[rank]]
                needed = _needs(operation, rank, pipeline, chunks)
                if needed is not None and needed not in done:
                    break
                forward, number, chunk = operation
                ready = 0.0 if needed is None else done[needed] + (lag if needed[3] != rank else 0.0)
                row = rows[number]
                seconds = layers[rank] * (row.forward if forward else row.backward)
                if rank == pipeline - 1 and chunk == chunks - 1:
                    seconds += row.head_forward if forward else row.head_backward
                clock[rank] = max(clock[rank], ready) + seconds
                done[forward, number, chunk, rank] = clock[rank]
                place[rank] += 1
                moved = True
    assert all(at == len(order) for at, order in zip(place, orders, strict=True)), "the schedule waits for itself"
    return max(clock)


def _needs(operation: Operation, rank: int, pipeline: int, chunks: int) -> tuple[bool, int, int, int] | None:
    """What must be done before: the same micro-batch on the rank before or, backward, behind."""
    forward, number, chunk = operation
    if forward:
        if rank == 0 and chunk == 0:
            return None
        return True, number, chunk if rank else chunk - 1, (rank - 1) % pipeline
    if rank == pipeline - 1:
        return (True, number, chunk, rank) if chunk == chunks - 1 else (False, number, chunk + 1, 0)
    return False, number, chunk, rank + 1


@cache
def _order(pipeline: int, chunks: int, micro_batches: int, rank: int) -> list[Operation]:
    """Megatron's order of work on one pipeline rank: warm-up, one forward and one backward in turn, the rest."""
    total = micro_batches * chunks

    def unit(number: int, forward: bool) -> tuple[int, int]:
        group, inside = divmod(number, pipeline * chunks)
        chunk, member = divmod(inside, pipeline)
        return group * pipeline + member, chunk if forward else chunks - 1 - chunk

    if chunks == 1:
        warm = min(micro_batches, pipeline - rank - 1)
        forwards, backwards = ([(way, number, 0) for number in range(total)] for way in (True, False))
    else:
        warm = min(total, (pipeline - rank - 1) * 2 + (chunks - 1) * pipeline)
        forwards, backwards = ([(way, *unit(number, way)) for number in range(total)] for way in (True, False))
    steady = [each for pair in zip(forwards[warm:], backwards, strict=False) for each in pair]
    return [*forwards[:warm], *steady, *backwards[total - warm :]]
