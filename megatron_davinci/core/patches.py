"""Every change that this project makes to objects and modules of other packages, each with the symptom it cures.

Nothing outside this file assigns to them (`tests/architecture/test_patches.py`), but for `first_import.py` while
Megatron is imported, and for the worker of `rl/math_grader.py`, which must not import torch: there sympy may not
compile what it parses. Tried with Megatron-Core 0.16.1 and 0.19.2. Each patch is a public function, and the caller
says when.
"""

import ctypes
import importlib
import logging
import os
import pickle
import sys
import types
from collections.abc import Callable
from functools import cache, wraps
from multiprocessing import get_context
from multiprocessing.managers import SyncManager
from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer

from megatron_davinci.core.adam import GroupStepAdamW, parts_of
from megatron_davinci.core.child_process import die_with
from megatron_davinci.core.device import CPU, has_gpu

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
_FACTORIES = frozenset({"tensor", "zeros", "ones", "empty", "full"})
_managers: list[SyncManager] = []  # which live as long as this process


@cache
def run_on_cpu_without_gpu() -> None:
    """Make Megatron-Core run on the CPU where there is no GPU. Call it before the first use of Megatron.

    Symptom: Megatron-Core calls CUDA without asking in a few places. They get the CPU: functions of torch that would
    raise, modules that write device="cuda" out, and the names of tensor types. With a GPU nothing is changed.
    """
    if has_gpu():
        return
    _keep_freed_memory()
    cuda: dict[str, Callable[..., Any]] = {
        "current_device": lambda: CPU,
        # two functions: torch's compiler, where another library imports it later, knows a function by one name
        "synchronize": lambda *_: None,
        "set_device": lambda *_: None,
        "current_stream": lambda *_: _NoStream(),
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


class _NoStream:
    """Work on the CPU is done when its function returns: a stream has nothing to wait for."""

    def wait_stream(self, _other: Any) -> None: ...

    def synchronize(self) -> None: ...


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


def take_class(module: torch.nn.Module, subclass: type[torch.nn.Module]) -> None:
    """Give a module that Megatron has built one of our subclasses of its class, which adds methods alone.

    Symptom: GPTModel makes its rotary embedding and its output layer itself, and takes no class for them.
    """
    assert issubclass(subclass, type(module))
    module.__class__ = subclass


def use_group_step_adam(optimizer: MegatronOptimizer) -> MegatronOptimizer:
    """Replace torch's AdamW inside a new Megatron optimizer. FusedAdam, on a GPU, stays.

    Symptom: a checkpoint of torch's AdamW cannot be loaded, or loads step 5 as 1 (see `core/adam.py`).
    """
    for part in parts_of(optimizer):
        if type(part.optimizer) is torch.optim.AdamW:
            part.optimizer = GroupStepAdamW.in_place_of(part.optimizer)
    return optimizer


class _SealedQueue:
    """A manager's queue whose process keeps bytes alone: it would import torch to look at a result."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue

    def put(self, item: Any) -> None:
        self._queue.put(pickle.dumps(item))

    def get_nowait(self) -> Any:
        """Raises queue.Empty."""
        return pickle.loads(self._queue.get_nowait())  # noqa: S301 - a process of this rank has put it there


def end_writer_with_rank() -> None:
    """Let the process through which Megatron's checkpoint writer collects results end with its rank.

    Symptom: Megatron's own outlives a rank that is killed, so they pile up on a node whose launcher starts ranks again.
    Call it before the first checkpoint is saved; further calls do nothing.
    """
    filesystem_async = importlib.import_module("megatron.core.dist_checkpointing.strategies.filesystem_async")
    if filesystem_async._results_queue is None:
        _managers.append(SyncManager(ctx=get_context("spawn")))
        _managers[0].start(initializer=die_with, initargs=(os.getpid(),))
        filesystem_async._results_queue = _SealedQueue(_managers[0].Queue())  # type: ignore[attr-defined]
