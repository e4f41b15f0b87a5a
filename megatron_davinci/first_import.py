"""Megatron-Core's import without what is not used here."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_PACKAGE = "megatron.core"


def import_megatron_without_unused_parts() -> None:
    """Leave out, when Megatron-Core is imported, Weights & Biases and, where there is no GPU, torch's compiler.

    Symptom: to import `train.loop`, torch and all, takes 8.5 s of a CPU core in each rank; with this patch 3.9 s.
    Megatron's timers and inference engine import wandb where it is. Functions that Megatron fuses for GPUs are given to
    torch.compile, which imports the compiler; without a GPU they stay as they are written. A run that reports to wandb,
    and code that compiles, import theirs later.
    """
    if _PACKAGE not in sys.modules:
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds Megatron-Core as others do, once."""

    def find_spec(self, name: str, _path: Sequence[str] | None, _target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _PACKAGE:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = partial(_execute, spec.loader.exec_module)  # type: ignore[method-assign]
        return spec


def _execute(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
    with _without_wandb(), _without_compiler():
        execute(module)


@contextmanager
def _without_wandb() -> Iterator[None]:
    absent = "wandb" not in sys.modules
    if absent:
        sys.modules["wandb"] = None  # type: ignore[assignment]  # an import of it raises ImportError
    try:
        yield
    finally:
        if absent:
            del sys.modules["wandb"]


@contextmanager
def _without_compiler() -> Iterator[None]:
    import torch

    if torch.cuda.is_available():
        yield
        return
    compile_ = torch.compile
    torch.compile = _as_it_is  # type: ignore[assignment]
    try:
        yield
        from megatron.core.jit import disable_jit_fuser

        disable_jit_fuser()  # for modules that are imported later
    finally:
        torch.compile = compile_


def _as_it_is(function: Callable[..., Any], *_: Any, **__: Any) -> Callable[..., Any]:
    return function
