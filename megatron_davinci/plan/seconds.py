"""Seconds of the parts of a step. Torch-free.

A product takes its arithmetic and the time that its matrices take to be read and written; attention its arithmetic over
the documents' lengths; collectives the bytes that leave a rank, over the link that they take. What hides behind
arithmetic is taken off. Constants are the device's (`devices.yaml`), fitted on published rows; the model's errors are
printed by `benchmarks/plan.py`.
"""

from dataclasses import dataclass
from typing import NamedTuple

from megatron_davinci.plan.devices import Device
from megatron_davinci.plan.memory import rank_parameters
from megatron_davinci.plan.shapes import LayerShapes, PlannedLayout

_HALF_SPEED_ROWS = 600  # tokens of a document's chunk at which attention reaches half of what long ones do
_ATTENTION_BACKWARD = 2.5 * 1.15  # products of backward over those of forward, and what is recomputed inside
_KEPT_LOGITS = 1 << 28
_ADAM_BYTES = 30.0  # read and written for each parameter
_HIDDEN_BEHIND_BACKWARD, _HIDDEN_BEHIND_FORWARD = 0.8, 0.8
_GRADIENT_BUCKETS = 4  # the last of which nothing is left to hide


class Row(NamedTuple):
    """One micro-batch: `width` tokens over all context ranks, the sum of its documents' squared lengths, and how many
    tokens are predicted."""

    width: float
    squares: float
    labels: float


class RowSeconds(NamedTuple):
    """Seconds of one layer, and of the output layer, for one micro-batch: forward, and backward with what it computes
    again; `exchange`: what of both is communication."""

    forward: float
    backward: float
    exchange: float
    head_forward: float
    head_backward: float


@dataclass(frozen=True)
class Timer:
    """Seconds of a model in a layout on a device."""

    shapes: LayerShapes
    layout: PlannedLayout
    device: Device

    def row(self, row: Row) -> RowSeconds:
        """Seconds of one micro-batch."""
        tokens = row.width / self.layout.parallel.context
        forward, backward, attention = self._arithmetic(tokens, row.squares, row.width)
        exchange_forward, exchange_backward = self._tensor_exchange(tokens)
        ring_forward, ring_backward = self._ring(tokens, attention)
        exchange_forward += ring_forward
        exchange_backward += ring_backward
        again = self._recomputed(tokens, forward, attention, exchange_forward)
        head_forward, head_backward = self._head(row.labels / self.layout.parallel.context)
        return RowSeconds(
            forward + exchange_forward,
            backward + exchange_backward + again,
            exchange_forward + exchange_backward,
            head_forward,
            head_backward,
        )

    def _rate(self, fp8: bool) -> float:
        device = self.device
        return device.flops * (2 * device.gemm_fp8 if fp8 else device.gemm) * self._share_of_unit()

    def _share_of_unit(self) -> float:
        """CPU ranks share the cores of their machine."""
        units = self.device.units
        return 1.0 if units is None else min(1.0, units / min(self.layout.gpus, self.device.gpus_per_node))

    def _bandwidth(self) -> float:
        return self.device.memory_bandwidth * self.device.memory_share * self._share_of_unit()

    def product(self, rows: float, outputs: float, inputs: float, fp8: bool) -> float:
        """Seconds of (rows, inputs) times (inputs, outputs)."""
        size = 1.5 if fp8 else float(self.layout.bytes_per_number)
        moved = size * (rows * inputs + inputs * outputs + rows * outputs)
        return 2.0 * rows * outputs * inputs / self._rate(fp8) + moved / self._bandwidth() + self.device.gemm_seconds

    def _arithmetic(self, tokens: float, squares: float, width: float) -> tuple[float, float, float]:
        """(forward, backward, attention's forward) of a layer, without communication."""
        shapes, layout, tensor = self.shapes, self.layout, self.layout.parallel.tensor
        forward = backward = 0.0
        for number, (outputs, inputs) in enumerate(shapes.products):
            # of a column-parallel matrix each rank has a part of the outputs, of a row-parallel one of the inputs
            here_out, here_in = (outputs / tensor, inputs) if number in (0, 2) else (outputs, inputs / tensor)
            forward += self.product(tokens, here_out, here_in, layout.fp8)
            backward += self.product(tokens, here_in, here_out, layout.fp8)
            backward += self.product(here_out, here_in, tokens, layout.fp8)
        between = self._between_products(tokens)
        attention = self._attention(squares, width)
        forward += between + self.device.layer_seconds + attention
        backward += 2 * between + 5 / 3 * self.device.layer_seconds + _ATTENTION_BACKWARD * attention
        return forward, backward, attention

    def _between_products(self, tokens: float) -> float:
        """Norms, residuals, rotary embedding and activation: bytes that are read and written."""
        shapes, layout = self.shapes, self.layout
        sharded, size = tokens / layout.parallel.tensor, layout.bytes_per_number
        moved = 10 * size * shapes.hidden * sharded
        moved += (2 * size * (shapes.query + shapes.key) + size * (shapes.fc1 + shapes.ffn)) * sharded
        if layout.fp8:
            moved += 4 * (2 * shapes.hidden * sharded + (shapes.query + shapes.ffn) * sharded)  # casts, transposes
        return moved / self._bandwidth()

    def _attention(self, squares: float, width: float) -> float:
        parallel = self.layout.parallel
        chunk = squares / max(1.0, width) / parallel.context  # of a document of mean length, weighed by tokens
        reached = self.device.attention * chunk / (chunk + _HALF_SPEED_ROWS)
        work = 2.0 * self.shapes.query * squares / (parallel.tensor * parallel.context)  # causal: half of 4 q L^2
        return work / max(1.0, self.device.flops * reached * self._share_of_unit()) if squares else 0.0

    def _link(self, ranks: int) -> float:
        """Bytes a second between so many neighbouring ranks."""
        device = self.device
        inside = ranks <= device.gpus_per_node
        return device.link * device.link_share if inside else device.network * device.network_share

    def _tensor_exchange(self, tokens: float) -> tuple[float, float]:
        """Gathers and scatters of a layer: four each way, of which two more of backward hide but for a tenth."""
        tensor = self.layout.parallel.tensor
        if tensor == 1:
            return 0.0, 0.0
        size = self.layout.bytes_per_number
        moved = size * self.shapes.hidden * tokens * (tensor - 1) / tensor
        one = moved / self._link(tensor) + self.device.exchange_seconds
        seen = 4 * one * (1 - self.device.tensor_overlap)
        return seen, seen + 0.2 * one

    def _ring(self, tokens: float, attention: float) -> tuple[float, float]:
        """Keys and values go round the context-parallel ranks while attention runs: what of it is seen."""
        parallel = self.layout.parallel
        others = parallel.context - 1
        if not others:
            return 0.0, 0.0
        moved = others * 2 * self.layout.bytes_per_number * self.shapes.key / parallel.tensor * tokens
        seconds = moved / self._link(parallel.tensor * parallel.context)
        hidden = attention * others / parallel.context
        forward = max(0.0, seconds - hidden) + others * self.device.ring_seconds
        backward = max(0.0, 2 * seconds - _ATTENTION_BACKWARD * hidden) + 1.6 * others * self.device.ring_seconds
        return forward, backward

    def _recomputed(self, tokens: float, forward: float, attention: float, exchange: float) -> float:
        recompute, parallel = self.layout.recompute, self.layout.parallel
        if recompute.kind == "full":
            chunk = self.shapes.num_layers / (parallel.pipeline * parallel.model_chunks)
            return (forward + exchange) * min(1.0, recompute.layers(max(1, round(chunk))) / chunk)
        again = attention if "core_attn" in recompute.modules else 0.0
        if "mlp" in recompute.modules:
            (_, _, (fc1, hidden), (_, ffn)) = self.shapes.products
            again += self.product(tokens, fc1 / parallel.tensor, hidden, self.layout.fp8) + exchange / 2
            again += self.product(tokens, hidden, ffn / parallel.tensor, self.layout.fp8)
        return again

    def _head(self, labels: float) -> tuple[float, float]:
        """Output layer and loss, a chunk of rows at a time; logits beyond those that are kept are computed again."""
        shard = self.shapes.vocab / self.layout.parallel.tensor
        one = self.product(labels, shard, self.shapes.hidden, False)
        softmax = 3 * 4.0 * labels * shard / self._bandwidth()
        again = one * max(0.0, 1 - _KEPT_LOGITS / max(1.0, labels * shard))
        return one + softmax, 2 * one + 1.3 * softmax + again

    def hop(self, width: float) -> float:
        """Seconds of one message to the next pipeline rank, 0 without a pipeline."""
        parallel = self.layout.parallel
        if parallel.pipeline == 1:
            return 0.0
        moved = self.layout.bytes_per_number * self.shapes.hidden * width / parallel.context / self.layout.row_shards
        return moved / self._link(self.layout.gpus) + self.device.hop_seconds

    def replicas(self, forward: float, backward: float) -> float:
        """Seconds of the replicas' exchange that nothing hides; of one micro-batch's passes on a rank it hides some."""
        layout, device, sharers = self.layout, self.device, self.layout.sharers
        if sharers == 1:
            return 0.0
        # of a group of replicas, node / tensor ranks sit in a node, each with a network card of its own
        link = device.link * device.link_share
        if layout.gpus > device.gpus_per_node:
            cards = max(1, min(sharers, device.gpus_per_node // layout.parallel.tensor))
            link = min(link, device.network * device.network_share * cards)
        moved = self._most_parameters() * (sharers - 1) / sharers / link
        scatter = (4.0 if layout.fp32_gradients else 2.0) * moved
        gather = layout.bytes_per_number * moved
        parts = max(_GRADIENT_BUCKETS, layout.parallel.model_chunks)
        if layout.overlaps_gradients:
            scatter = max(scatter / parts, scatter - _HIDDEN_BEHIND_BACKWARD * backward)
        if layout.overlaps_weights:
            gather = max(gather / parts, gather - _HIDDEN_BEHIND_FORWARD * forward)
        return scatter + gather

    def optimizer(self) -> float:
        """Seconds of Adam, and of what the host does once a step."""
        sharers = self.layout.sharers if self.layout.shards_optimizer else 1
        return _ADAM_BYTES * self._most_parameters() / sharers / self._bandwidth() + self.device.step_seconds

    def _most_parameters(self) -> float:
        """Parameters of the pipeline rank that has most."""
        ranks = range(self.layout.parallel.pipeline)
        return max(rank_parameters(self.shapes, self.layout, rank) for rank in ranks)
