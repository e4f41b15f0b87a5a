"""What a plan counts with: the widths of a model's layers, and a layout on so many GPUs. Torch-free."""

from dataclasses import dataclass
from typing import Literal, Self

from megatron_davinci.models.parallel_layout import MegatronOptions, ParallelLayout
from megatron_davinci.models.sizes import ModelSizes

MOST_CONTEXT = 32
"""Context-parallel ranks of the largest layouts that are planned."""
RecomputeKind = Literal["none", "selective", "full"]


@dataclass(frozen=True)
class LayerShapes:
    """Widths of one transformer layer, and how many there are.

    `fc1`: outputs of the MLP's first product, twice `ffn` where it is gated; `heads`: query heads, each `head_width`
    wide; `norms`, `biases`: how many parameters of a layer are these; `tied`: the output layer is the embedding.
    """

    num_layers: int
    hidden: int
    ffn: int
    fc1: int
    query: int
    key: int
    heads: int
    head_width: int
    vocab: int
    norms: int
    biases: int = 0
    tied: bool = False

    @classmethod
    def of(cls, model: ModelSizes) -> Self:
        """The shapes of a model that is trained here."""
        widths = {layer.name: layer for layer in model.linear_layers}
        return cls(
            num_layers=model.num_layers,
            hidden=model.hidden_size,
            ffn=model.ffn_hidden_size,
            fc1=widths["linear_fc1"].out_features,
            query=model.query_size,
            key=model.key_size,
            heads=model.num_attention_heads,
            head_width=model.kv_channels,
            vocab=model.padded_vocab_size,
            norms=model.norm_parameters,
            biases=sum(layer.out_features for layer in model.linear_layers if layer.has_bias),
            tied=model.tied_embeddings,
        )

    @property
    def qkv(self) -> int:
        """Width of queries, keys and values together."""
        return self.query + 2 * self.key

    @property
    def products(self) -> tuple[tuple[int, int], ...]:
        """(outputs, inputs) of the layer's four products."""
        return (self.qkv, self.hidden), (self.hidden, self.query), (self.fc1, self.hidden), (self.hidden, self.ffn)

    @property
    def weights(self) -> int:
        """Numbers in the matrices of one layer."""
        return sum(outputs * inputs for outputs, inputs in self.products)


@dataclass(frozen=True)
class Recompute:
    """What backward computes again.

    `modules`: of each layer, where it is selective; what is planned of them is core_attn and mlp. `blocks`: of full
    recomputation, for how many layers of each chunk, None for all; `together`: how many layers are computed again at
    once, between two inputs that are kept.
    """

    kind: RecomputeKind = "none"
    modules: frozenset[str] = frozenset()
    blocks: int | None = None
    together: int = 1

    @classmethod
    def of(cls, megatron: MegatronOptions) -> Self:
        """What a recipe's fields ask for."""
        if megatron.recompute_granularity is None:
            return cls()
        if megatron.recompute_granularity == "selective":
            return cls("selective", frozenset(megatron.recompute_modules))
        number = megatron.recompute_num_layers or 1
        return cls("full", blocks=number) if megatron.recompute_method == "block" else cls("full", together=number)

    def layers(self, chunk: int) -> int:
        """How many layers of a chunk it is done for."""
        if self.kind == "none":
            return 0
        return chunk if self.blocks is None else min(chunk, self.blocks)

    def __str__(self) -> str:
        if self.kind == "selective":
            return "+".join(sorted(self.modules))
        return f"block {self.blocks}" if self.blocks is not None else self.kind


@dataclass(frozen=True)
class PlannedLayout:
    """A layout on a number of GPUs, with all that its bytes and seconds depend on."""

    parallel: ParallelLayout
    gpus: int
    micro_batch_size: int = 1
    recompute: Recompute = Recompute()
    bf16: bool = True
    fp8: bool = False
    fp32_gradients: bool = True
    shards_optimizer: bool = True
    overlaps_gradients: bool = True
    overlaps_weights: bool = True
    transformer_engine: bool = True

    @classmethod
    def of(cls, megatron: MegatronOptions, gpus: int, micro_batch_size: int = 1, gpu: bool = True) -> Self:
        """A recipe's fields on so many GPUs, or CPU processes."""
        return cls(
            parallel=megatron.layout,
            gpus=gpus,
            micro_batch_size=micro_batch_size,
            recompute=Recompute.of(megatron),
            bf16=megatron.bf16,
            fp8=megatron.fp8 is not None,
            fp32_gradients=megatron.grad_reduce_in_fp32 or not megatron.bf16,
            shards_optimizer=megatron.use_distributed_optimizer,
            overlaps_gradients=megatron.overlap_grad_reduce,
            overlaps_weights=megatron.overlap_param_gather,
            transformer_engine=gpu and megatron.transformer_impl != "local",
        )

    @property
    def replicas(self) -> int:
        """Data-parallel size."""
        return self.gpus // self.parallel.ranks_per_replica

    @property
    def sharers(self) -> int:
        """Ranks that hold the same weights, and share out the optimizer."""
        return self.replicas * self.parallel.context

    @property
    def row_shards(self) -> int:
        """Parts into which sequence parallelism splits what lies between the products."""
        return self.parallel.tensor if self.parallel.sequence_parallel else 1

    @property
    def bytes_per_number(self) -> int:
        """Bytes of one number of activations and weights."""
        return 2 if self.bf16 else 4
