"""The fields of Megatron's configuration classes, read from the installed package's source without importing it.

Importing megatron.core takes seconds and torch; a recipe is checked before either.
"""

import ast
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from data_prep import InputError
from data_prep.io.registry import nearest
from megatron_davinci.config.annotations import accepts
from megatron_davinci.config.foreign_keys import foreign_place

# Where the classes stand that a recipe's `megatron:` section may set; bases before what extends them.
_SOURCES = {
    "ModelParallelConfig": "model_parallel_config.py",
    "TransformerConfig": "transformer/transformer_config.py",
    "OptimizerConfig": "optimizer/optimizer_config.py",
    "DistributedDataParallelConfig": "distributed/distributed_data_parallel_config.py",
}

# Set elsewhere in the recipe: a second value here could contradict the first.
_ELSEWHERE = {
    **dict.fromkeys(
        ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels",
         "normalization", "layernorm_epsilon", "gated_linear_unit", "activation_func", "add_bias_linear",
         "add_qkv_bias"), "model"),
    **dict.fromkeys(("lr", "min_lr"), "schedule"),
    **dict.fromkeys(("calculate_per_token_loss", "average_in_collective"), "the loss contract (never changed)"),
}  # fmt: skip

# What training here uses so far. The rest of Megatron-Core's fields would be ignored, or is not proven yet: refused.
USED_FIELDS = frozenset(
    {"tensor_model_parallel_size", "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size",
     "num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage",
     "context_parallel_size", "sequence_parallel", "bf16", "deterministic_mode", "recompute_granularity",
     "recompute_method", "recompute_num_layers", "recompute_modules", "use_distributed_optimizer",
     "overlap_grad_reduce", "overlap_param_gather", "grad_reduce_in_fp32", "bucket_size", "optimizer", "weight_decay",
     "adam_beta1", "adam_beta2", "adam_eps", "clip_grad", "fp8", "fp8_recipe", "fp8_margin", "fp8_amax_history_len",
     "fp8_amax_compute_algo", "fp8_wgrad", "first_last_layers_bf16", "num_layers_at_start_in_bf16",
     "num_layers_at_end_in_bf16", "transformer_impl", "attention_backend"}
)  # fmt: skip
_REFUSED = {
    **dict.fromkeys(
        ("fp8_dot_product_attention", "fp8_multi_head_attention"),
        "attention stays in bf16: over packed rows Transformer Engine's FP8 attention has no backward pass on Hopper"),
    "gradient_accumulation_fusion":
        "Megatron's output layer wants a kernel of Apex for it, and what it adds up has not been compared here",
    **dict.fromkeys(
        ("tp_comm_overlap", "tp_comm_overlap_ag", "tp_comm_overlap_rs"),
        "its buffers are Transformer Engine's, on GPUs of one node alone, and no run of it has been compared here"),
    **dict.fromkeys(
        ("cuda_graph_impl", "enable_cuda_graph", "external_cuda_graph", "cuda_graph_scope"),
        "a graph repeats calls of the same shapes, and packed documents and trees have others in each step"),
    "use_precision_aware_optimizer":
        "Transformer Engine's fused optimizer alone has it, and its states have not been compared on a GPU",
    "variable_seq_lengths":
        "rows are as wide as their documents anyway, and pipelines know their shapes without sending them",
    "fp8_param": "weights stay in bf16 beside their fp32 main copies: a checkpoint is the same with fp8 and without",
}  # fmt: skip
_CHOICES: dict[str, tuple[str | None, ...]] = {
    "optimizer": ("adam",),
    "attention_backend": ("auto", "flash", "fused", "unfused"),  # of Transformer Engine's layers
    "transformer_impl": ("auto", "transformer_engine", "local"),
    "fp8": ("hybrid", "e4m3", None),
    "fp8_recipe": ("tensorwise", "blockwise", "delayed"),  # mxfp8 is Blackwell's
    "fp8_amax_compute_algo": ("most_recent", "max"),
}
_RANGES = {  # from, to (not included)
    "adam_beta1": (0.0, 1.0),
    "adam_beta2": (0.0, 1.0),
    "adam_eps": (0.0, float("inf")),
    "weight_decay": (0.0, float("inf")),
    "clip_grad": (0.0, float("inf")),
    "bucket_size": (1, float("inf")),
    "recompute_num_layers": (1, float("inf")),
    "num_layers_in_first_pipeline_stage": (1, float("inf")),
    "num_layers_in_last_pipeline_stage": (1, float("inf")),
}


def check_megatron_fields(values: dict[str, Any]) -> None:
    """Raise InputError for a name that Megatron's configuration lacks, with its nearest neighbour, or a wrong type."""
    known = megatron_fields()
    for name, value in values.items():
        if name in _ELSEWHERE:
            raise InputError(f"megatron.{name} is set by {_ELSEWHERE[name]}: leave it out of the megatron section")
        if name not in known:
            place = foreign_place(name, USED_FIELDS, ())
            hint = nearest(name, known) if place is None else f"; did you mean {place}?"
            raise InputError(f"megatron.{name} is no field of Megatron-Core's configuration{hint}")
        if name in _REFUSED:
            raise InputError(f"megatron.{name} cannot be set, since {_REFUSED[name]}: leave it out")
        if name not in USED_FIELDS:
            raise InputError(f"megatron.{name} is not used in training yet; what is: {', '.join(sorted(USED_FIELDS))}")
        if name in _CHOICES and value not in _CHOICES[name]:
            raise InputError(f"megatron.{name} is {value!r}; it must be {' or '.join(map(str, _CHOICES[name]))}")
        if not accepts(known[name], value):
            raise InputError(f"megatron.{name} is {value!r}; Megatron-Core wants a value of type {known[name]}")
        least, limit = _RANGES.get(name, (float("-inf"), float("inf")))
        if name in _RANGES and value is not None and not least <= value < limit:
            raise InputError(f"megatron.{name} is {value}; it must be at least {least} and below {limit}")


def used_fields() -> dict[str, str]:
    """Field name -> what it takes, of those that a recipe may set: Megatron's annotation, or what is chosen from."""
    return {
        name: " or ".join("null" if choice is None else str(choice) for choice in _CHOICES[name])
        if name in _CHOICES
        else annotation
        for name, annotation in megatron_fields().items()
        if name in USED_FIELDS
    }


@cache
def megatron_fields() -> dict[str, str]:
    """Field name -> annotation, over all configuration classes."""
    try:
        root = Path(str(distribution("megatron-core").locate_file("megatron/core")))
    except PackageNotFoundError:
        raise InputError("megatron-core is not installed: install the extra 'train'") from None
    fields: dict[str, str] = {}
    for class_name, file in _SOURCES.items():
        for node in ast.parse((root / file).read_bytes()).body:
            if isinstance(node, ast.ClassDef) and node.name == class_name:
                fields |= {
                    item.target.id: ast.unparse(item.annotation)
                    for item in node.body
                    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
                }
    return fields
