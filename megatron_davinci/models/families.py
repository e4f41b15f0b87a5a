"""Model families as data: what is fixed in Megatron's configuration, and how parameters map to Hugging Face's names.

Megatron names are those of its checkpoints, with the layer number taken out: `decoder.layers.*.mlp.linear_fc1.weight`.
Every mapping is one of rows: a row of Megatron's tensor is a row of one of Hugging Face's. Torch-free; the tensors that
pass through a mapping are torch's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from megatron_davinci.models.sizes import ModelSizes

if TYPE_CHECKING:
    from torch import Tensor

Size = Callable[[ModelSizes], int]


class RowRange(NamedTuple):
    """`length` rows of Hugging Face's tensor number `part`, from `hf_row` on, are Megatron's from `megatron_row` on."""

    part: int
    hf_row: int
    megatron_row: int
    length: int


@dataclass(frozen=True)
class Mapping:
    """One tensor of Megatron's, made up of one or more of Hugging Face's: `rows` of each, all with the same `columns`.

    Megatron has the rows in `groups`, each with some of every part. No `columns`: one number for each row.
    `padded`: zero rows beyond the vocabulary follow, so that any number of ranks divides them.
    """

    megatron: str
    hf: tuple[str, ...]
    rows: tuple[Size, ...]
    columns: Size | None = None
    groups: Size = lambda model: 1
    padded: bool = False

    def row_ranges(self, model: ModelSizes) -> list[RowRange]:
        """All rows, in Megatron's order."""
        found, at, groups = [], 0, self.groups(model)
        sizes = [rows(model) // groups for rows in self.rows]
        for group in range(groups):
            for part, count in enumerate(sizes):
                found.append(RowRange(part, group * count, at, count))
                at += count
        return found

    def hf_shapes(self, model: ModelSizes) -> list[tuple[int, ...]]:
        """Shape of each tensor of Hugging Face's."""
        return [self._shape(rows(model), model) for rows in self.rows]

    def megatron_shape(self, model: ModelSizes) -> tuple[int, ...]:
        """Shape of Megatron's tensor."""
        rows = model.padded_vocab_size if self.padded else sum(rows(model) for rows in self.rows)
        return self._shape(rows, model)

    def _shape(self, rows: int, model: ModelSizes) -> tuple[int, ...]:
        return (rows,) if self.columns is None else (rows, self.columns(model))

    def to_hf(self, tensor: "Tensor", model: ModelSizes) -> list["Tensor"]:
        """One whole tensor per name of `hf`."""
        parts = [tensor.new_empty(shape) for shape in self.hf_shapes(model)]
        for run in self.row_ranges(model):
            rows = tensor[run.megatron_row : run.megatron_row + run.length]
            parts[run.part][run.hf_row : run.hf_row + run.length] = rows
        return parts


@dataclass(frozen=True)
class Family:
    """`megatron`: fields of TransformerConfig; `mappings`: every parameter, `*` standing for the layer number.

    `requires`: fields of config.json that other members of the family set otherwise, and this code does not know.
    """

    model_type: str
    megatron: dict[str, Any]
    mappings: tuple[Mapping, ...]
    requires: dict[str, Any] = field(default_factory=dict)


_hidden, _ffn, _head = attrgetter("hidden_size"), attrgetter("ffn_hidden_size"), attrgetter("kv_channels")
_queries, _keys = attrgetter("query_size"), attrgetter("key_size")
_vocabulary = attrgetter("vocab_size")
_MEGATRON_LAYER, _HF_LAYER = "decoder.layers.*.", "model.layers.*."


def _layer(megatron: str, hf: Sequence[str], *rows: Size, **how: Any) -> Mapping:
    return Mapping(_MEGATRON_LAYER + megatron, tuple(_HF_LAYER + name for name in hf), rows, **how)


def _qkv(kind: str, columns: Size | None) -> Mapping:
    """Megatron interleaves per KV group: the group's queries, its key, its value."""
    names = [f"self_attn.{letter}_proj.{kind}" for letter in "qkv"]
    how = {"columns": columns, "groups": lambda model: model.num_query_groups}
    return _layer(f"self_attention.linear_qkv.{kind}", names, _queries, _keys, _keys, **how)


# What all three share: pre-norm layers with RMSNorm, grouped-query attention, and a gated MLP without biases.
_COMMON = {"normalization": "RMSNorm", "gated_linear_unit": True, "add_bias_linear": False}
_COMMON_MAPPINGS = (
    Mapping("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), (_vocabulary,), _hidden, padded=True),
    _layer("self_attention.linear_qkv.layer_norm_weight", ["input_layernorm.weight"], _hidden),
    _qkv("weight", _hidden),
    _layer("self_attention.linear_proj.weight", ["self_attn.o_proj.weight"], _hidden, columns=_queries),
    _layer("mlp.linear_fc1.layer_norm_weight", ["post_attention_layernorm.weight"], _hidden),
    # the gate on top of the up projection
    _layer("mlp.linear_fc1.weight", ["mlp.gate_proj.weight", "mlp.up_proj.weight"], _ffn, _ffn, columns=_hidden),
    _layer("mlp.linear_fc2.weight", ["mlp.down_proj.weight"], _hidden, columns=_ffn),
    Mapping("decoder.final_layernorm.weight", ("model.norm.weight",), (_hidden,)),
    Mapping("output_layer.weight", ("lm_head.weight",), (_vocabulary,), _hidden, padded=True),
)
_QK_NORMS = tuple(_layer(f"self_attention.{x}_layernorm.weight", [f"self_attn.{x}_norm.weight"], _head) for x in "qk")

QWEN2 = Family(
    model_type="qwen2",
    megatron={**_COMMON, "add_qkv_bias": True, "qk_layernorm": False},
    mappings=(*_COMMON_MAPPINGS, _qkv("bias", None)),
)
QWEN3 = Family(
    model_type="qwen3",
    megatron={**_COMMON, "add_qkv_bias": False, "qk_layernorm": True},
    mappings=(*_COMMON_MAPPINGS, *_QK_NORMS),
    requires={"attention_bias": False},
)
LLAMA = Family(
    model_type="llama",
    megatron={**_COMMON, "add_qkv_bias": False, "qk_layernorm": False},
    mappings=_COMMON_MAPPINGS,
    requires={"attention_bias": False, "mlp_bias": False},
)

FAMILIES = {family.model_type: family for family in (QWEN2, QWEN3, LLAMA)}
