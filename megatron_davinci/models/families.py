"""Model families as data: what is fixed in Megatron's configuration, and how parameters map to Hugging Face's names.

Megatron names are those of its checkpoints, with the layer number taken out: `decoder.layers.*.mlp.linear_fc1.weight`.
Torch-free; the tensors that pass through a mapping are torch's.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_davinci.models.config import ModelConfig


@dataclass(frozen=True)
class Direct:
    """The same tensor under two names."""

    megatron: str
    hf: tuple[str]

    def to_hf(self, tensor: "Tensor", model: "ModelConfig") -> list["Tensor"]:
        """One tensor per name of `hf`."""
        return [tensor]

    def from_hf(self, tensors: list["Tensor"], model: "ModelConfig") -> "Tensor":
        """Inverse of to_hf."""
        return tensors[0]


@dataclass(frozen=True)
class Vocabulary(Direct):
    """A row per token: Megatron's has rows beyond the vocabulary, all zero, so that any number of ranks divides it."""

    def to_hf(self, tensor: "Tensor", model: "ModelConfig") -> list["Tensor"]:
        """Without the rows that pad it."""
        return [tensor[: model.vocab_size]]

    def from_hf(self, tensors: list["Tensor"], model: "ModelConfig") -> "Tensor":
        """Inverse of to_hf."""
        from torch.nn.functional import pad

        return pad(tensors[0], (0, 0, 0, model.padded_vocab_size - model.vocab_size))


@dataclass(frozen=True)
class GateUp:
    """Megatron's fc1 (2*ffn, hidden) is the gate on top of the up projection, (ffn, hidden) each."""

    megatron: str
    hf: tuple[str, str]

    def to_hf(self, tensor: "Tensor", model: "ModelConfig") -> list["Tensor"]:
        """Gate, up."""
        return list(tensor.chunk(2))

    def from_hf(self, tensors: list["Tensor"], model: "ModelConfig") -> "Tensor":
        """Inverse of to_hf."""
        import torch

        return torch.cat(tensors)


@dataclass(frozen=True)
class QueryKeyValue:
    """Megatron interleaves per KV group: the group's queries, its key, its value. Weight or bias: rows alone count."""

    megatron: str
    hf: tuple[str, str, str]

    def to_hf(self, tensor: "Tensor", model: "ModelConfig") -> list["Tensor"]:
        """Query (heads*d, ...), key and value (groups*d, ...)."""
        groups, d = model.num_query_groups, model.kv_channels
        per_group = model.num_attention_heads // groups
        rows = tensor.unflatten(0, (groups, per_group + 2, d))
        return [rows[:, a:b].flatten(0, 2) for a, b in ((0, per_group), (per_group, -1), (per_group + 1, None))]

    def from_hf(self, tensors: list["Tensor"], model: "ModelConfig") -> "Tensor":
        """Inverse of to_hf."""
        import torch

        groups = [tensor.unflatten(0, (model.num_query_groups, -1, model.kv_channels)) for tensor in tensors]
        return torch.cat(groups, dim=1).flatten(0, 2)


Mapping = Direct | GateUp | QueryKeyValue


@dataclass(frozen=True)
class Family:
    """`megatron`: fields of TransformerConfig; `mappings`: every parameter, `*` standing for the layer number.

    `requires`: fields of config.json that other members of the family set otherwise, and this code does not know.
    """

    model_type: str
    megatron: dict[str, Any]
    mappings: tuple[Mapping, ...]
    requires: dict[str, Any] = field(default_factory=dict)


_MEGATRON_LAYER, _HF_LAYER = "decoder.layers.*.", "model.layers.*."


def _qkv(kind: str) -> QueryKeyValue:
    q, k, v = (f"{_HF_LAYER}self_attn.{letter}_proj.{kind}" for letter in "qkv")
    return QueryKeyValue(f"{_MEGATRON_LAYER}self_attention.linear_qkv.{kind}", (q, k, v))


def _layer(megatron: str, hf: str) -> Direct:
    return Direct(_MEGATRON_LAYER + megatron, (_HF_LAYER + hf,))


# What all three share: pre-norm layers with RMSNorm, grouped-query attention, and a gated MLP without biases.
_COMMON = {"normalization": "RMSNorm", "gated_linear_unit": True, "add_bias_linear": False}
_COMMON_MAPPINGS = (
    Vocabulary("embedding.word_embeddings.weight", ("model.embed_tokens.weight",)),
    _layer("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"),
    _qkv("weight"),
    _layer("self_attention.linear_proj.weight", "self_attn.o_proj.weight"),
    _layer("mlp.linear_fc1.layer_norm_weight", "post_attention_layernorm.weight"),
    GateUp(
        f"{_MEGATRON_LAYER}mlp.linear_fc1.weight",
        (f"{_HF_LAYER}mlp.gate_proj.weight", f"{_HF_LAYER}mlp.up_proj.weight"),
    ),
    _layer("mlp.linear_fc2.weight", "mlp.down_proj.weight"),
    Direct("decoder.final_layernorm.weight", ("model.norm.weight",)),
    Vocabulary("output_layer.weight", ("lm_head.weight",)),
)
_QK_NORMS = tuple(_layer(f"self_attention.{x}_layernorm.weight", f"self_attn.{x}_norm.weight") for x in "qk")

QWEN2 = Family(
    model_type="qwen2",
    megatron={**_COMMON, "add_qkv_bias": True, "qk_layernorm": False},
    mappings=(*_COMMON_MAPPINGS, _qkv("bias")),
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


def mappings_of(model: "ModelConfig") -> list[Mapping]:
    """The family's mappings that this model has: none for the output layer where embeddings are tied."""
    return [m for m in model.family.mappings if not (model.tied_embeddings and m.megatron == "output_layer.weight")]
