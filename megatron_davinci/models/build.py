"""The one place where models are built: Megatron's GPTModel for one pipeline stage, with this project's attention."""

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import silu

from data_prep import InputError
from megatron_davinci import device
from megatron_davinci.attention.packed import PackedAttention
from megatron_davinci.models.config import ModelConfig


class RMSNorm(torch.nn.RMSNorm):
    """RMSNorm under sequence parallelism: Megatron's wrapper refuses it, though only the weight's mark is missing."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_unused: Any) -> None:
        super().__init__(hidden_size, eps=eps)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


def transformer_config(model: ModelConfig, megatron: dict[str, Any]) -> TransformerConfig:
    """Megatron's configuration of a model; `megatron` may hold fields of other configuration classes too.

    Raises InputError with Megatron's own words where it refuses a combination of fields.
    """
    try:
        return TransformerConfig(**_config_fields(model, megatron))
    except (AssertionError, TypeError, ValueError) as error:
        raise InputError(f"Megatron-Core refuses the recipe's megatron section: {error}") from None


def _config_fields(model: ModelConfig, megatron: dict[str, Any]) -> dict[str, Any]:
    fields = TransformerConfig.__dataclass_fields__
    return {
        **model.family.megatron,
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "ffn_hidden_size": model.ffn_hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_query_groups": model.num_query_groups,
        "kv_channels": model.kv_channels,
        "layernorm_epsilon": model.layernorm_epsilon,
        "init_method_std": model.init_method_std,
        "activation_func": silu,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "params_dtype": torch.float32,
        "pipeline_dtype": torch.float32,
        # models.initialize fills the weights, the same for every layout. perform_initialization=False would do
        # too, but then Megatron leaves out a weight's tensor_model_parallel mark, and the gradient norm is wrong.
        **dict.fromkeys(("init_method", "output_layer_init_method", "embedding_init_method"), _leave_unset),
        "calculate_per_token_loss": True,  # DDP then sums gradients; the loss carries its own global weights
        **device.transformer_config_fields(),
        **{name: value for name, value in megatron.items() if name in fields},
    }


def _leave_unset(weight: Tensor) -> Tensor:
    """An initialisation that does nothing."""
    return weight


def layer_spec() -> ModuleSpec:
    """Megatron's local layer with packed attention and a norm that bears sequence parallelism."""
    spec = get_gpt_layer_local_spec(normalization="RMSNorm")
    spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = RMSNorm
    spec.submodules.self_attention.submodules.core_attention = PackedAttention
    return spec


def build_model(config: TransformerConfig, model: ModelConfig) -> GPTModel:
    """This rank's pipeline stage, its weights not yet set."""
    # A block spec: given a bare layer spec, Megatron picks the final norm itself.
    block = TransformerBlockSubmodules(layer_specs=[layer_spec()] * get_num_layers_to_build(config), layer_norm=RMSNorm)
    return GPTModel(
        config,
        block,
        vocab_size=model.vocab_size,
        max_sequence_length=model.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=model.tied_embeddings,
        position_embedding_type="rope",
        rotary_base=int(model.rotary_base),
    )
