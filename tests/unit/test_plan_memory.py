"""The memory model against measured peaks, and against the bytes that the state is known to take."""

import pytest

from megatron_davinci.models.config import load_model_config
from megatron_davinci.models.memory import GIB, state_bytes
from megatron_davinci.models.parallel_layout import MegatronOptions, ParallelLayout
from megatron_davinci.plan.memory import (
    MARGIN,
    chunks_in_flight,
    fullest_rank,
    kept_by_layer,
    layer_activations,
    rank_parameters,
    state_memory,
)
from megatron_davinci.plan.shapes import LayerShapes, PlannedLayout, Recompute


def gpt(layers: int, hidden: int, heads: int, groups: int, vocab: int, biases: bool) -> LayerShapes:
    """Megatron-LM's own models: four times as wide inside, nothing gated, heads of 128."""
    query, key = heads * 128, groups * 128
    return LayerShapes(layers, hidden, 4 * hidden, 4 * hidden, query, key, heads, 128, vocab, 2 * hidden,
                       (query + 2 * key) if biases else 0)  # fmt: skip


CORE_ATTENTION, MLP = (Recompute("selective", frozenset({name})) for name in ("core_attn", "mlp"))
SEVEN, FIFTEEN = gpt(32, 4096, 32, 8, 131200, True), gpt(32, 6144, 48, 8, 256000, False)
# Megatron-LM tests/functional_tests/test_cases/gpt: mem-allocated-bytes and mem-max-allocated-bytes on H100.
GOLDEN = {
    "7B TP1 PP4 VP8": (SEVEN, ParallelLayout(1, 4, 8), 8, 1, 8192, 4, True, 23.105, 56.551),
    "7B TP4, no SP": (SEVEN, ParallelLayout(4), 8, 2, 8192, 2, True, 19.244, 53.219),
    "15B TP8 SP": (FIFTEEN, ParallelLayout(8, sequence_parallel=True), 128, 4, 4096, 6, False, 12.358, 26.226),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_values_of_megatron_lm(name: str) -> None:
    """Nothing here was fitted. Those runs keep masks of dropout, and whole logits, which training here has not."""
    shapes, parallel, gpus, micro_batch_size, seq_length, micro_batches, dropout, state, peak = GOLDEN[name]
    layout = PlannedLayout(parallel, gpus, micro_batch_size)
    tokens = micro_batch_size * seq_length
    planned = sum(state_memory(rank_parameters(shapes, layout, 0), layout).values())
    layers = shapes.num_layers // (parallel.pipeline * parallel.model_chunks)
    kept, _ = kept_by_layer(shapes, layout, tokens)
    masks = 2 * shapes.hidden * tokens / layout.row_shards if dropout else 0
    planned_peak = planned + chunks_in_flight(layout, micro_batches, 0) * layers * (kept + masks)
    if parallel.pipeline == 1:
        planned_peak += (2 + 4) * tokens * shapes.vocab / parallel.tensor
    else:
        planned_peak += 2 * 2 * shapes.fc1 * tokens / parallel.tensor
    assert -MARGIN <= planned / GIB / state - 1 <= 0
    assert -MARGIN <= planned_peak / GIB / peak - 1 <= 0


@pytest.mark.parametrize("model", ["qwen2.5-7b", "qwen2.5-72b", "qwen3-14b"])
@pytest.mark.parametrize(
    "given",
    [
        {"bf16": True, "use_distributed_optimizer": True, "tensor_model_parallel_size": 4},
        {"bf16": True, "pipeline_model_parallel_size": 4, "grad_reduce_in_fp32": False},
        {"pipeline_model_parallel_size": 2, "num_layers_in_last_pipeline_stage": 10},
    ],
)
def test_state_is_counted_as_everywhere(model: str, given: dict[str, object]) -> None:
    sizes, megatron = load_model_config(model), MegatronOptions.of(given)
    shapes, layout = LayerShapes.of(sizes), PlannedLayout.of(megatron, 64)
    ranks = range(megatron.layout.pipeline)
    planned = max(sum(state_memory(rank_parameters(shapes, layout, rank), layout).values()) for rank in ranks)
    assert planned == pytest.approx(state_bytes(sizes, megatron).of_each(layout.sharers), rel=1e-6)


def test_a_layer_as_the_paper_counts_it() -> None:
    """Korthikanti et al. 2022, Eq. 2 without attention's scores and dropout: 34 s b h less 3 of masks, plus lse. Their
    layer keeps its attention's output once, and what GELU and its product take: 8 + 8 h; ours is theirs to the byte."""
    shapes = gpt(1, 4096, 32, 32, 1000, False)
    kept = sum(layer_activations(shapes, PlannedLayout(ParallelLayout(), 1), 1).values())
    assert kept == 2 * 4096 * (2 + 2 + 3 + 1 + 4 + 4) + 4 * 32


@pytest.mark.parametrize(
    "pipeline, chunks, micro_batches, expected",
    [(1, 1, 8, [1]), (4, 1, 8, [4, 3, 2, 1]), (4, 1, 2, [2, 2, 2, 1]), (2, 2, 4, [5, 3]), (4, 2, 4, [8, 8, 7, 5])],
)
def test_chunks_in_flight_follow_the_schedule(
    pipeline: int, chunks: int, micro_batches: int, expected: list[int]
) -> None:
    layout = PlannedLayout(ParallelLayout(pipeline=pipeline, virtual_pipeline=chunks if chunks > 1 else None), pipeline)
    assert [chunks_in_flight(layout, micro_batches, rank) for rank in range(pipeline)] == expected


def test_several_layers_together_keep_fewer_inputs_and_are_all_there_when_computed_again() -> None:
    shapes = LayerShapes.of(load_model_config("qwen2.5-72b"))
    parallel = ParallelLayout(8, 4, None, 4, True)
    one, five = (
        fullest_rank(shapes, PlannedLayout(parallel, 128, recompute=Recompute("full", together=each)), 32768, 64).kinds
        for each in (1, 5)
    )
    assert five["recomputed layers"] == 5 * one["recomputed layers"] and five["activations"] < one["activations"]


def test_recomputation_orders_what_is_kept() -> None:
    shapes = LayerShapes.of(load_model_config("qwen2.5-72b"))
    peaks = [
        fullest_rank(shapes, PlannedLayout(ParallelLayout(8, 8, 5, 4, True), 512, recompute=how), 32768, 110).total
        for how in (Recompute(), CORE_ATTENTION, Recompute("full", blocks=1), MLP, Recompute("full"))
    ]
    assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == 5
