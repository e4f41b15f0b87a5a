"""Bytes of each pipeline rank while it trains, by what they are for. Torch-free.

Activations follow Korthikanti et al. 2022 (arXiv:2205.05198) with flash attention, grouped queries and gated MLPs: what
a layer keeps for backward is the sum of the tensors that its functions save, each once. How many micro-batches are in
flight follows from Megatron's schedules. Megatron-LM's own golden values of three models are met within 6% from below
(`tests/unit/test_plan_memory.py`): plans keep that margin.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from megatron_davinci.models.memory import GIB
from megatron_davinci.plan.shapes import LayerShapes, PlannedLayout

MARGIN = 0.06
"""Share by which a peak may be off, from three published ones."""
_CONTEXT = int(2.5 * GIB)  # of CUDA, NCCL and cuBLAS, and what the allocator cannot use
_LOSS_CHUNKS = 2 * (128 << 20)  # logits of one chunk in fp32, and their gradient
_KEPT_LOGITS = 1 << 30


def layer_activations(shapes: LayerShapes, layout: PlannedLayout, tokens: int) -> dict[str, float]:
    """Bytes that one layer, of which nothing is recomputed, keeps of `tokens` rows on one context-parallel rank."""
    tensor, size = layout.parallel.tensor, layout.bytes_per_number
    rows, sharded = tokens / layout.row_shards, tokens / tensor
    input_size = 1 if layout.fp8 else size  # of the products, which FP8 keeps as it multiplies them
    kept = {
        "norms": 2 * size * shapes.hidden * rows,
        "inputs of qkv and fc1": 2 * input_size * shapes.hidden * rows,
        "queries, keys, values": size * shapes.qkv * sharded,
        "attention": size * shapes.query * sharded + 4 * shapes.heads * sharded,  # its output, and log-sum-exp
        "fc1": size * shapes.fc1 * sharded,
        "input of fc2": input_size * shapes.ffn * sharded,
    }
    if layout.fp8:
        kept["attention"] += shapes.query * sharded  # the cast copy that the projection multiplies
    if not layout.transformer_engine:
        kept |= _local_activations(shapes, layout, tokens)
    return kept


def _local_activations(shapes: LayerShapes, layout: PlannedLayout, tokens: int) -> dict[str, float]:
    """Megatron's own layers, as they run on a CPU: torch's norms compute in fp32, nothing is fused."""
    size, rows, sharded = layout.bytes_per_number, tokens / layout.row_shards, tokens / layout.parallel.tensor
    return {
        "norms": 2 * (2 * 4 * shapes.hidden + 4) * rows,
        "inputs of qkv and fc1": 2 * size * shapes.hidden * rows,
        # queries and keys after rotary embedding, cosine and sine as they are multiplied, and the product's output
        "queries, keys, values": size * (shapes.query + shapes.key + shapes.qkv) * sharded
        + 4 * size * shapes.head_width * tokens,
        "attention": size * shapes.query * sharded + 4 * shapes.heads * sharded,
        "fc1": size * shapes.fc1 * sharded,
        "input of fc2": 3 * size * shapes.ffn * sharded,
    }


_IN_MLP = ("fc1", "input of fc2")


def kept_by_layer(shapes: LayerShapes, layout: PlannedLayout, tokens: int) -> tuple[float, float]:
    """(bytes that a layer keeps for which the recipe's recomputation is done, bytes of one for which it is not)."""
    kinds = layer_activations(shapes, layout, tokens)
    whole = sum(kinds.values())
    if layout.recompute.kind == "full":
        edge = layout.bytes_per_number * shapes.hidden * tokens / layout.row_shards
        return edge / layout.recompute.together, whole
    kept = whole
    if "core_attn" in layout.recompute.modules:
        # queries, keys and values stay, and so does the output, which the projection multiplies
        kept -= 4 * shapes.heads * tokens / layout.parallel.tensor
    if "mlp" in layout.recompute.modules:
        kept -= sum(kinds[name] for name in _IN_MLP) + (kinds["inputs of qkv and fc1"] / 2 if layout.fp8 else 0)
    return kept, whole


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one pipeline rank, by what they are for."""

    rank: int
    kinds: Mapping[str, float]

    @property
    def total(self) -> float:
        """The sum over all kinds."""
        return sum(self.kinds.values())


def fullest_rank(shapes: LayerShapes, layout: PlannedLayout, width: int, micro_batches: int) -> RankMemory:
    """The pipeline rank that needs most. `width`: tokens of the widest micro-batch, over all context ranks."""
    last = layout.parallel.pipeline - 1
    candidates = sorted({0, min(1, last), max(0, last - 1), last})
    return max((rank_memory(shapes, layout, width, micro_batches, rank) for rank in candidates), key=lambda r: r.total)


def rank_memory(shapes: LayerShapes, layout: PlannedLayout, width: int, micro_batches: int, rank: int) -> RankMemory:
    """What one pipeline rank needs at its peak."""
    kinds = state_memory(rank_parameters(shapes, layout, rank), layout)
    if layout.fp8:
        layers = layout.parallel.layers_by_rank(shapes.num_layers)[rank]
        kinds["FP8 weights"] = 2.0 * layers * shapes.weights / layout.parallel.tensor
    tokens = width // layout.parallel.context
    kinds |= _activation_memory(shapes, layout, tokens, micro_batches, rank)
    size = layout.bytes_per_number
    # the widest layer's gradients, and rows that sequence parallelism gathers
    kinds["workspace"] = 2 * size * shapes.fc1 * tokens / layout.parallel.tensor + 2 * size * shapes.hidden * tokens
    if rank == layout.parallel.pipeline - 1:
        shard = shapes.vocab / layout.parallel.tensor
        kinds["loss"] = (
            min(_KEPT_LOGITS, 4.0 * tokens * shard)
            + _LOSS_CHUNKS
            + 2 * size * shapes.hidden * tokens
            + 4.0 * shard * shapes.hidden  # the output layer's gradient, as it adds up
        )
    kinds["context"] = _CONTEXT
    return RankMemory(rank, kinds)


def rank_parameters(shapes: LayerShapes, layout: PlannedLayout, rank: int) -> float:
    """Parameters of one tensor-parallel rank of a pipeline rank."""
    parallel = layout.parallel
    layers = parallel.layers_by_rank(shapes.num_layers)[rank]
    found = layers * ((shapes.weights + shapes.biases) / parallel.tensor + shapes.norms)
    embedding = shapes.vocab * shapes.hidden / parallel.tensor
    if rank == 0:
        found += embedding
    if rank == parallel.pipeline - 1:
        found += shapes.hidden + (0 if shapes.tied and rank == 0 else embedding)
    return found


def state_memory(parameters: float, layout: PlannedLayout) -> dict[str, float]:
    """Weights, gradients and Adam between two steps, as `models.memory.state_bytes` counts them."""
    optimizer = (12.0 if layout.bf16 else 8.0) * parameters
    return {
        "weights": float(layout.bytes_per_number) * parameters,
        "gradients": (4.0 if layout.fp32_gradients else 2.0) * parameters,
        "optimizer": optimizer / layout.sharers if layout.shards_optimizer else optimizer,
    }


def _activation_memory(
    shapes: LayerShapes, layout: PlannedLayout, tokens: int, micro_batches: int, rank: int
) -> dict[str, float]:
    parallel, recompute = layout.parallel, layout.recompute
    chunk = parallel.layers_by_rank(shapes.num_layers)[rank] // parallel.model_chunks
    recomputed = recompute.layers(chunk)
    with_it, without = kept_by_layer(shapes, layout, tokens)
    in_flight = chunks_in_flight(layout, micro_batches, rank)
    edge = layout.bytes_per_number * shapes.hidden * tokens / layout.row_shards
    kept = recomputed * with_it + (chunk - recomputed) * without + (edge if parallel.pipeline > 1 else 0)
    found = {"activations": in_flight * kept}
    if recompute.kind == "full":
        found["recomputed layers"] = recompute.together * without
    return found


def chunks_in_flight(layout: PlannedLayout, micro_batches: int, rank: int) -> int:
    """Chunks, of one micro-batch each, whose activations a pipeline rank holds at the most."""
    pipeline, chunks = layout.parallel.pipeline, layout.parallel.model_chunks
    if pipeline == 1:
        return 1
    if chunks == 1:
        return min(micro_batches, pipeline - rank)
    return min(micro_batches * chunks, (pipeline - rank - 1) * 2 + (chunks - 1) * pipeline + 1)
