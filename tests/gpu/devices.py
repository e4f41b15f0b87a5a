"""The same measures without a GPU and with this machine's; where there is none, both run on the CPU."""

import os
from collections.abc import Callable
from typing import Any

from megatron_davinci.core.device import has_gpu
from megatron_davinci.testing import run_on_ranks

# Kernels for GPUs work in tiles of 64 and more: there the model is wide enough to fill some. Large weights make
# attention choose: a model as it is made attends to all alike, and wrong positions would hide in the rounding of bf16.
_WIDE = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 2}
MODEL: dict[str, Any] = {"initializer_range": 0.1, **(_WIDE if has_gpu() else {})}


def on_cpu(function: Callable[..., Any], *args: Any) -> Any:
    """What an importable function gives on a rank that sees no GPU."""
    [found] = run_on_ranks(_without_gpu, 1, function, args)
    return found


def on_device(function: Callable[..., Any], *args: Any) -> Any:
    """What an importable function gives on a rank that sees what this machine has."""
    [found] = run_on_ranks(function, 1, *args)
    return found


def _without_gpu(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read when CUDA is first asked for, which is later
    return function(*args)
