"""A model's sizes under Megatron's names, and the one algebra of them: linear layers, norms, embeddings. Torch-free."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from data_prep.io.arithmetic import ceil_to_multiple

# Embeddings have this multiple of rows, whatever the layout: any tensor-parallel size that divides it can be resumed by
# any other. Megatron's make_vocab_size_divisible_by has the same default.
_VOCABULARY_MULTIPLE = 128


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """What a transformer's tensors follow from."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    vocab_size: int
    tied_embeddings: bool
    add_qkv_bias: bool
    qk_layernorm: bool

    @property
    def query_size(self) -> int:
        """Width of all query heads together."""
        return self.num_attention_heads * self.kv_channels

    @property
    def key_size(self) -> int:
        """Width of all key heads together; that of all value heads is the same."""
        return self.num_query_groups * self.kv_channels

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embeddings in training. Those beyond `vocab_size` are never used, and never exported."""
        return ceil_to_multiple(self.vocab_size, _VOCABULARY_MULTIPLE)

    @property
    def norm_parameters(self) -> int:
        """Parameters of the norms of one layer, which every tensor-parallel rank holds."""
        return 2 * self.hidden_size + (2 * self.kv_channels if self.qk_layernorm else 0)

    @property
    def linear_layers(self) -> tuple["LinearLayer", ...]:
        """The linear layers of one transformer layer, under Megatron's names."""
        qkv = self.query_size + 2 * self.key_size
        return (
            LinearLayer("linear_qkv", self.hidden_size, qkv, "column", self.add_qkv_bias),
            LinearLayer("linear_proj", self.query_size, self.hidden_size, "row"),
            LinearLayer("linear_fc1", self.hidden_size, 2 * self.ffn_hidden_size, "column"),  # gate and up projection
            LinearLayer("linear_fc2", self.ffn_hidden_size, self.hidden_size, "row"),
        )

    def layer_parameters(self, tensor_parallel_size: int = 1) -> int:
        """Parameters of one transformer layer on one tensor-parallel rank."""
        linear = sum(layer.parameters(tensor_parallel_size) for layer in self.linear_layers)
        return linear + self.norm_parameters

    def num_parameters(self) -> int:
        """Parameters of the whole model; tied embeddings count once."""
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)
        return self.num_layers * self.layer_parameters() + embeddings + self.hidden_size


class LinearLayer(NamedTuple):
    """One matrix (out_features, in_features). `parallel`: which side tensor parallelism splits."""

    name: str
    in_features: int
    out_features: int
    parallel: Literal["column", "row"]
    has_bias: bool = False

    @property
    def num_weights(self) -> int:
        """Numbers in the matrix."""
        return self.in_features * self.out_features

    def shard(self, tensor_parallel_size: int) -> tuple[int, int]:
        """(in_features, out_features) on one tensor-parallel rank."""
        if self.parallel == "column":
            return self.in_features, self.out_features // tensor_parallel_size
        return self.in_features // tensor_parallel_size, self.out_features

    def parameters(self, tensor_parallel_size: int = 1) -> int:
        """Weights and biases on one tensor-parallel rank."""
        in_features, out_features = self.shard(tensor_parallel_size)
        return in_features * out_features + (out_features if self.has_bias else 0)
