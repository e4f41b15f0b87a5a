"""Megatron's gradient buffers and optimizer from a recipe."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_config import TransformerConfig

from data_prep import InputError
from megatron_davinci.core.adam import parts_of
from megatron_davinci.core.patches import use_group_step_adam
from megatron_davinci.models.parallel_layout import MegatronOptions

# What Megatron leaves to its caller; a recipe's `megatron` section wins.
_DEFAULTS = {"optimizer": "adam", "weight_decay": 0.1, "adam_beta1": 0.9, "adam_beta2": 0.95, "clip_grad": 1.0}

Chunks = list[DistributedDataParallel]


def data_parallel(config: TransformerConfig, megatron: MegatronOptions, models: Sequence[GPTModel]) -> Chunks:
    """Each chunk with its gradient buffers. Gradients are summed over ranks: the loss carries global weights.

    In bf16 gradients add up, over micro-batches and ranks, in fp32 unless the recipe says otherwise.
    """
    fields = DistributedDataParallelConfig.__dataclass_fields__
    chosen = {name: value for name, value in megatron.given.items() if name in fields}
    chunks = [
        DistributedDataParallel(
            config,
            DistributedDataParallelConfig(**{"grad_reduce_in_fp32": True, **chosen}),
            model,
            disable_bucketing=number > 0,
        )
        for number, model in enumerate(in_precision(config, models))
    ]
    if megatron.overlap_grad_reduce:
        no_sync = [chunk.no_sync for chunk in chunks]
        config.no_sync_func = no_sync if len(chunks) > 1 else no_sync[0]
    return chunks


def in_precision(config: TransformerConfig, models: Sequence[GPTModel]) -> list[torch.nn.Module]:
    """Models that turn what goes in and comes out into bf16 and back, where they compute in it."""
    return [Float16Module(config, model) if config.bf16 else model for model in models]


def build_optimizer(megatron: MegatronOptions, chunks: Chunks) -> MegatronOptimizer:
    """Adam with clipping by global norm; main weights in fp32. The learning rate is set before each step."""
    fields = OptimizerConfig.__dataclass_fields__
    chosen = {name: value for name, value in {**_DEFAULTS, **megatron.given}.items() if name in fields}
    dtype = torch.bfloat16 if megatron.bf16 else torch.float32
    config = OptimizerConfig(lr=0.0, min_lr=0.0, params_dtype=dtype, **chosen)
    optimizer = use_group_step_adam(get_megatron_optimizer(config, chunks))
    refuse_padded_buckets(optimizer)
    return optimizer


def refuse_padded_buckets(optimizer: MegatronOptimizer) -> None:
    """Raise InputError where Megatron-Core (0.16.1 and 0.19.2) would save a distributed optimizer's state shifted.

    It cuts each parameter's state out of a buffer without the padding between buckets, at offsets that count it.
    """
    for part in parts_of(optimizer):
        names = ("per_bucket_numel", "per_bucket_numel_unpadded")
        for padded, unpadded in zip(*(getattr(part, name, ()) for name in names), strict=True):
            if any(padded[dtype][:-1] != unpadded[dtype][:-1] for dtype in padded):
                raise InputError(
                    "overlap_grad_reduce cuts this model's gradients into buckets with padding between them, whose "
                    "optimizer state Megatron-Core would save shifted: set megatron.bucket_size above the number of "
                    "parameters per rank, or leave overlap_grad_reduce out"
                )


def clip_and_step(optimizer: MegatronOptimizer, grad_norm: float) -> None:
    """Clip prepared gradients by their norm, and update. Megatron's own `step` would compute the norm once more."""
    for part in parts_of(optimizer):
        parameters = [] if getattr(part, "is_stub_optimizer", False) else part.get_parameters()
        if parameters and part.config.clip_grad > 0:
            clip_grad_by_total_norm_fp32(parameters, part.config.clip_grad, grad_norm)
    optimizer.step_with_ready_grads()


def set_hyperparameters(optimizer: MegatronOptimizer, lr: float) -> None:
    """Give every parameter group the learning rate of this step, and what the stage's recipe says of Adam.

    Weight decay spares norms and biases: Megatron marks their group, and leaves the rest to its scheduler. A checkpoint
    that was loaded has brought the values of the stage that saved it.
    """
    for part in parts_of(optimizer):
        config = part.config
        for group in part.param_groups:
            group["lr"] = lr
            group["weight_decay"] = config.weight_decay * group["wd_mult"]
            group["betas"], group["eps"] = (config.adam_beta1, config.adam_beta2), config.adam_eps


def unwrap(chunks: Chunks) -> list[GPTModel]:
    """The models inside the wrappers for gradients and bf16."""
    modules = [chunk.module for chunk in chunks]
    return [module.module if isinstance(module, Float16Module) else module for module in modules]


@contextmanager
def gathered_weights(chunks: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Every rank's weights whole and still: overlap_param_gather otherwise fills them in during the next forward.

    Data-parallel ranks enter it together.
    """
    hooked = [chunk for chunk in chunks if isinstance(chunk, DistributedDataParallel) and chunk.use_forward_hook]
    for chunk in hooked:
        chunk.disable_forward_pre_hook()
    try:
        yield
    finally:
        for chunk in hooked:
            chunk.enable_forward_pre_hook()
