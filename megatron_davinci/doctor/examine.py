"""All checks, in the order in which one builds on another."""

from collections.abc import Callable, Iterator
from pathlib import Path

from data_prep.io.extras import command_for
from megatron_davinci.doctor.finding import Finding, fail
from megatron_davinci.doctor.machine import (
    check_disk,
    check_git,
    check_gpu,
    check_open_files,
    check_sandbox,
    check_shared_memory,
    check_slurm,
    check_sockets,
)
from megatron_davinci.doctor.packages import (
    check_apex,
    check_cudnn,
    check_extension,
    check_flash_attention,
    check_megatron,
    check_python,
    check_torch,
    check_transformer_engine,
    check_vllm,
)


def examine(directory: Path) -> Iterator[Finding]:
    """A finding at a time; `directory`: where runs are to be written. What needs torch is left out where it is ill."""
    yield check_python()
    yield check_extension()
    torch = check_torch()
    yield torch
    megatron = check_megatron()
    yield megatron
    yield check_apex()
    yield check_git()
    yield check_slurm()
    yield check_sandbox(directory)
    yield check_vllm()
    yield check_disk(directory)
    yield check_shared_memory()
    yield check_open_files()
    sockets = check_sockets()
    yield sockets
    if torch.state != "ok":
        return
    from megatron_davinci.core.device import compute_capability, why_no_flash_attention

    gpu = check_gpu()
    yield gpu
    has_gpu = gpu.state == "ok"
    yield check_transformer_engine(has_gpu, why_no_flash_attention() if has_gpu else "")
    yield check_cudnn(compute_capability() if has_gpu else None)
    yield check_flash_attention(has_gpu)
    if sockets.state != "fail" and megatron.state == "ok":
        yield from _trials()


def _trials() -> Iterator[Finding]:
    try:
        from megatron_davinci.doctor.trial import try_attention, try_ranks
    except ImportError as error:
        yield fail("trials", f"cannot begin: {error}", command_for("train"))
        return
    trials: tuple[Callable[[], Finding], ...] = (try_ranks, try_attention)
    for trial in trials:
        yield trial()
