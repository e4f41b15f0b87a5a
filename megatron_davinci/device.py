"""The only place that knows whether there is a GPU.

Megatron-Core calls CUDA without asking in a few places. Where there is none, `use_this_machine` gives those places the
CPU: functions of torch that would raise, modules that write device="cuda" out, and the names of tensor types. With a
GPU it changes nothing.
"""

import ctypes
import importlib
import logging
import resource
import sys
import types
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import torch

CPU = torch.device("cpu")

# Modules of Megatron-Core that write device="cuda" out, on paths that run here.
_WRITE_CUDA_OUT = (
    "megatron.core.pipeline_parallel.schedules",
    "megatron.core.optimizer.clip_grads",
    "megatron.core.optimizer.optimizer",
    "megatron.core.utils",
)
# glibc's mallopt: up to this many bytes, freed memory is kept for the next tensor. By default what exceeds 32 MiB goes
# back to the system, which fills it with zeros, page by page, each time a layer asks again.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _KEPT_BYTES = -1, -3, 2**31 - 1
_FP8_CAPABILITY = (8, 9)  # Ada and Hopper
_FACTORIES = frozenset({"tensor", "zeros", "ones", "empty", "full"})


def has_gpu() -> bool:
    """True where CUDA can be used."""
    return torch.cuda.is_available()


def why_no_fp8() -> str:
    """The reason for which matrices cannot be multiplied in FP8 here; empty where they can."""
    if not has_gpu():
        return "this machine has no GPU"
    capability = torch.cuda.get_device_capability()
    if capability < _FP8_CAPABILITY:
        return f"{torch.cuda.get_device_name()} has compute capability {capability}, FP8 needs {_FP8_CAPABILITY}"
    return ""


def backend() -> str:
    """The process-group backend of this machine."""
    return "nccl" if has_gpu() else "gloo"


def local_device(local_rank: int) -> torch.device:
    """The device of one rank, by its number on this machine; Slurm may have each rank see its own GPU alone."""
    if not has_gpu():
        return CPU
    visible = torch.cuda.device_count()
    device = torch.device("cuda", local_rank if visible > 1 else 0)
    torch.cuda.set_device(device)
    return device


def transformer_config_fields(interleaved: bool) -> dict[str, Any]:
    """Fields of Megatron's TransformerConfig that hang on the device: fused kernels exist only for CUDA.

    On gloo, an interleaved pipeline with batch_p2p_comm gives wrong gradients without a word.
    """
    if has_gpu():
        return {"apply_rope_fusion": True, "bias_activation_fusion": True, "bias_dropout_fusion": True,
                "batch_p2p_comm": not interleaved, "overlap_p2p_comm": interleaved}  # fmt: skip
    off = ("gradient_accumulation_fusion", "masked_softmax_fusion", "bias_activation_fusion", "bias_dropout_fusion",
           "persist_layer_norm", "batch_p2p_comm")  # fmt: skip
    return {"use_cpu_initialization": True, **dict.fromkeys(off, False)}


def synchronize() -> None:
    """Wait until the GPU has done what it was given: before a clock is read."""
    if has_gpu():
        torch.cuda.synchronize()


def name() -> str:
    """The name of this rank's GPU, or "cpu"."""
    return torch.cuda.get_device_name() if has_gpu() else "cpu"


def peak_memory() -> int:
    """Bytes that were in use at most: of this rank's GPU or, without one, of this process."""
    if has_gpu():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@cache
def use_this_machine() -> None:
    """Make Megatron-Core run on the CPU where there is no GPU. Call before the first use of Megatron."""
    if has_gpu():
        return
    _keep_freed_memory()
    cuda: dict[str, Callable[..., Any]] = {
        "current_device": lambda: CPU,
        # two functions: torch's compiler, where another library imports it later, knows a function by one name
        "synchronize": lambda *_: None,
        "set_device": lambda *_: None,
        "manual_seed": torch.manual_seed,
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda state, *_: torch.set_rng_state(state),
    }
    for name, function in cuda.items():
        setattr(torch.cuda, name, function)
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    torch.Tensor.type = _type_as_on_cuda(torch.Tensor.type)  # type: ignore[method-assign]
    for module in _WRITE_CUDA_OUT:
        importlib.import_module(module).torch = _TorchOnCpu("torch")  # type: ignore[attr-defined]
    random = importlib.import_module("megatron.core.tensor_parallel.random")
    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()  # type: ignore[attr-defined]
    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)  # type: ignore[attr-defined]
    logging.getLogger(random.__name__).addFilter(lambda record: "CPU RNG state changed" not in record.getMessage())


def _keep_freed_memory() -> None:
    """A step on the CPU asks for the same large tensors over and over, and much of its time went into new pages."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def _type_as_on_cuda(original: Callable[..., Any]) -> Callable[..., Any]:
    """Megatron compares the name of a tensor's type with "torch.cuda.FloatTensor"; to Megatron alone it is that."""

    @wraps(original)
    def tensor_type(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = original(self, *args, **kwargs)
        asks_for_name = not args and not kwargs
        if asks_for_name and sys._getframe(1).f_globals.get("__name__", "").startswith("megatron.core."):
            return answer.replace("torch.", "torch.cuda.", 1)
        return answer

    return tensor_type


class _TorchOnCpu(types.ModuleType):
    """torch as one module of Megatron sees it: what it puts on "cuda" lands on the CPU."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(torch, name)
        return _on_cpu(value) if name in _FACTORIES else value


@cache
def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @wraps(factory)
    def on_cpu(*args: Any, **kwargs: Any) -> torch.Tensor:
        if kwargs.get("device") == "cuda":
            kwargs["device"] = CPU
        return factory(*args, **kwargs)

    return on_cpu
