"""The one place where models are built: GPTModel for each pipeline stage of a rank, with this project's attention."""

import math
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer.enums import AttnBackend
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import silu

from data_prep import InputError
from megatron_davinci.core import device
from megatron_davinci.core.attention.packed import PackedAttention
from megatron_davinci.core.gpt import ScoringGPTModel
from megatron_davinci.core.rope import scaled_frequencies
from megatron_davinci.core.transformer_impl import transformer_impl
from megatron_davinci.models.config import ModelConfig
from megatron_davinci.models.parallel_layout import MegatronOptions


class RMSNorm(torch.nn.RMSNorm):
    """RMSNorm under sequence parallelism: Megatron's wrapper refuses it, though only the weight's mark is missing."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_unused: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


def transformer_config(model: ModelConfig, megatron: MegatronOptions) -> TransformerConfig:
    """Megatron's configuration of a model; `megatron` may have fields of other configuration classes too.

    Raises InputError with Megatron's own words where it refuses a combination of fields.
    """
    try:
        return TransformerConfig(**_config_fields(model, megatron))
    except (AssertionError, TypeError, ValueError) as error:
        raise InputError(f"Megatron-Core refuses the recipe's megatron section: {error}") from None


def _config_fields(model: ModelConfig, megatron: MegatronOptions) -> dict[str, Any]:
    fields = TransformerConfig.__dataclass_fields__
    impl = transformer_impl(megatron)
    dtype = torch.bfloat16 if megatron.bf16 else torch.float32
    return {
        **model.family.megatron,
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "ffn_hidden_size": model.ffn_hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_query_groups": model.num_query_groups,
        "kv_channels": model.kv_channels,
        "layernorm_epsilon": model.layernorm_epsilon,
        "softmax_scale": softmax_scale(model),
        "init_method_std": model.init_method_std,
        "activation_func": silu,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        # core.initialize fills the weights, the same for every layout. perform_initialization=False would do
        # too, but then Megatron leaves out a weight's tensor_model_parallel mark, and the gradient norm is wrong.
        **dict.fromkeys(("init_method", "output_layer_init_method", "embedding_init_method"), _leave_unset),
        "calculate_per_token_loss": True,  # DDP then sums gradients; the loss carries its own global weights
        **device.transformer_config_fields(megatron.layout.virtual_pipeline is not None, local=impl == "local"),
        # delayed scaling reduces its amax in every forward pass, of which replicas may have different numbers
        "tp_only_amax_red": megatron.scaling == "delayed",
        **{name: value for name, value in megatron.given.items() if name in fields},
        "attention_backend": AttnBackend[megatron.given.get("attention_backend", "auto")],
        "transformer_impl": impl,
    }


def softmax_scale(model: ModelConfig) -> float | None:
    """What scores are multiplied by, where it is not Megatron's own: YaRN's factor of queries, and that of keys.

    Megatron multiplies cosine and sine by such a factor too, but not in Transformer Engine's kernel for packed rows.
    """
    factor = 1.0 if model.rope_scaling is None else model.rope_scaling.attention_factor
    return None if factor == 1.0 else factor * factor / math.sqrt(model.kv_channels)


def _leave_unset(weight: Tensor) -> Tensor:
    """An initialisation that does nothing."""
    return weight


def block_spec(config: TransformerConfig, vp_stage: int | None) -> TransformerBlockSubmodules:
    """The layers of one stage. A block spec: given a bare layer spec, Megatron picks the final norm itself.

    Transformer Engine's layers, whose attention takes packed rows, context parallelism and, by a class of ours, trees;
    or Megatron's local layers with packed attention and a norm that bears sequence parallelism.
    """
    num_layers = get_num_layers_to_build(config, vp_stage=vp_stage)
    if config.transformer_impl == "transformer_engine":
        from megatron.core.extensions.transformer_engine import TENorm

        from megatron_davinci.core.attention.transformer_engine import PositionedDotProductAttention

        spec = get_gpt_layer_with_transformer_engine_spec(qk_layernorm=config.qk_layernorm)
        spec.submodules.self_attention.submodules.core_attention = PositionedDotProductAttention
        return TransformerBlockSubmodules(layer_specs=[spec] * num_layers, layer_norm=TENorm)
    spec = get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=config.qk_layernorm)
    spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = RMSNorm
    attention = spec.submodules.self_attention.submodules
    attention.core_attention = PackedAttention
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    return TransformerBlockSubmodules(layer_specs=[spec] * num_layers, layer_norm=RMSNorm)


def build_chunks(config: TransformerConfig, model: ModelConfig) -> list[ScoringGPTModel]:
    """This rank's pipeline stage, in as many chunks as interleaving asks for; their weights are not yet set."""
    if config.virtual_pipeline_model_parallel_size is None:
        return [_build_chunk(config, model, None)]
    return [_build_chunk(config, model, stage) for stage in range(config.virtual_pipeline_model_parallel_size)]


def _build_chunk(config: TransformerConfig, model: ModelConfig, vp_stage: int | None) -> ScoringGPTModel:
    where = {"ignore_virtual": vp_stage is None, "vp_stage": vp_stage}
    scaling, width = model.rope_scaling, model.kv_channels
    return ScoringGPTModel(
        config,
        block_spec(config, vp_stage),
        vocab_size=model.padded_vocab_size,
        unpadded_vocab_size=model.vocab_size,
        frequencies=None if scaling is None else scaled_frequencies(width, model.rotary_base, scaling),
        max_sequence_length=model.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(**where),
        post_process=parallel_state.is_pipeline_last_stage(**where),
        share_embeddings_and_output_weights=model.tied_embeddings,
        position_embedding_type="rope",
        rotary_base=int(model.rotary_base),
        vp_stage=vp_stage,
    )
