"""Whose layers a model is built of, Transformer Engine's or Megatron's local ones, and whether this machine has them.

Local layers, and trees in either, attend by torch's own kernels (`core/attention/kernels.py`).
"""

from importlib.util import find_spec
from typing import Literal

from data_prep import InputError
from megatron_davinci.core import device
from megatron_davinci.models.config import ModelConfig
from megatron_davinci.models.parallel_layout import MegatronOptions

Impl = Literal["transformer_engine", "local"]

_MAX_HEAD = 256  # of flash attention
_HIDE = "hide the GPU with CUDA_VISIBLE_DEVICES="
_INSTALL = "install the extra 'gpu'"


def transformer_impl(megatron: MegatronOptions) -> Impl:
    """The layers of a recipe's `megatron.transformer_impl` on this machine.

    `auto`: Transformer Engine's with a GPU where it is installed, else local ones.
    """
    if megatron.transformer_impl == "auto":
        return "transformer_engine" if device.has_gpu() and _has_transformer_engine() else "local"
    return "local" if megatron.transformer_impl == "local" else "transformer_engine"


def check_transformer_impl(megatron: MegatronOptions, model: ModelConfig, trees: bool) -> None:
    """Raise InputError where this machine lacks what these layers are trained with.

    `trees`: rows of trees are among what they compute, or responses are written.
    """
    chosen = transformer_impl(megatron)
    if chosen == "transformer_engine":
        _check_transformer_engine(megatron)
    if megatron.fp8 and chosen == "local":
        why = device.why_no_fp8() or "FP8 is computed by Transformer Engine's layers alone, and these are local ones"
        more = "" if not device.has_gpu() or _has_transformer_engine() else f", or {_INSTALL}"
        raise InputError(f"the recipe sets megatron.fp8, and {why}: train with megatron.fp8=null, in bf16{more}")
    if chosen == "local" and "attention_backend" in megatron.given:
        raise InputError(
            "megatron.attention_backend chooses among Transformer Engine's kernels, and the layers here are Megatron's "
            "local ones: leave it out"
        )
    if device.has_gpu() and (chosen == "local" or trees):
        _check_flash_attention(megatron, model, chosen, trees)


def _check_transformer_engine(megatron: MegatronOptions) -> None:
    if not device.has_gpu():
        raise InputError(
            "megatron.transformer_impl is transformer_engine, whose layers run on a GPU alone, and this machine has "
            "none: leave it out, or set it to local"
        )
    if not _has_transformer_engine():
        raise InputError(
            f"megatron.transformer_impl is transformer_engine, which is not installed: {_INSTALL}, or set it to local"
        )
    if megatron.fp8 and (reason := device.why_no_fp8()):
        raise InputError(f"the recipe sets megatron.fp8, and {reason}: train with megatron.fp8=null, in bf16")


def _check_flash_attention(megatron: MegatronOptions, model: ModelConfig, chosen: Impl, trees: bool) -> None:
    """torch's flash attention is there, and takes this model's heads."""
    who = "Megatron's local layers attend" if chosen == "local" else "trees, and responses that are written, attend"
    what = f"on a GPU {who} by torch's flash attention"
    remedy = _HIDE
    if chosen == "local" and not trees:
        other = "leave megatron.transformer_impl out" if _has_transformer_engine() else _INSTALL
        remedy = f"{other}, or {_HIDE}"
    elif chosen == "transformer_engine":
        remedy = f"leave them out (report.prompts: 0, objective: {{kind: ntp}}), or {_HIDE}"
    if reason := device.why_no_flash_attention():
        raise InputError(f"{what}, and {reason}: {remedy}")
    if not megatron.bf16:
        raise InputError(
            f"{what}, which takes bf16 alone, and the recipe trains in fp32: set megatron.bf16, or {remedy}"
        )
    if model.kv_channels % 8 or model.kv_channels > _MAX_HEAD:
        raise InputError(
            f"{what}, which takes heads of a multiple of 8 up to {_MAX_HEAD}, and the model's are {model.kv_channels} "
            f"wide: {remedy}"
        )


def _has_transformer_engine() -> bool:
    return find_spec("transformer_engine") is not None
