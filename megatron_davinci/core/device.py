"""The only place that knows whether there is a GPU, and what follows from that."""

import resource
import socket
from typing import Any

import torch

from data_prep import InputError

CPU = torch.device("cpu")

_FP8_CAPABILITY = (8, 9)  # Ada and Hopper
_FLASH_CAPABILITY = (8, 0)  # Ampere
_FLASH_TORCH = (2, 7)  # from then on its log-sum-exp is of all rows, not of padded ones


def has_gpu() -> bool:
    """True where CUDA can be used."""
    return torch.cuda.is_available()


def compute_capability() -> tuple[int, int]:
    """The generation of this rank's GPU: (9, 0) is Hopper."""
    return torch.cuda.get_device_capability()


def why_no_fp8() -> str:
    """The reason for which matrices cannot be multiplied in FP8 here; empty where they can."""
    if not has_gpu():
        return "this machine has no GPU"
    capability = compute_capability()
    if capability < _FP8_CAPABILITY:
        return f"{torch.cuda.get_device_name()} has compute capability {capability}, FP8 needs {_FP8_CAPABILITY}"
    return ""


def why_no_flash_attention() -> str:
    """The reason for which torch's own flash attention does not run on this machine's GPU; empty where it does."""
    if _release(torch.__version__) < _FLASH_TORCH:
        return f"torch {torch.__version__} is too old for it, which needs 2.7"
    if not torch.backends.cuda.is_flash_attention_available():
        return f"torch {torch.__version__} was built without it"
    capability = compute_capability()
    if capability < _FLASH_CAPABILITY:
        return f"{torch.cuda.get_device_name()} has compute capability {capability}, it needs {_FLASH_CAPABILITY}"
    return ""


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def backend() -> str:
    """The process-group backend of this machine."""
    return "nccl" if has_gpu() else "gloo"


def local_device(local_rank: int) -> torch.device:
    """The device of one rank, by its number on this machine; Slurm may have each rank see its own GPU alone."""
    if not has_gpu():
        return CPU
    visible = torch.cuda.device_count()
    if 1 < visible <= local_rank:
        raise InputError(
            f"LOCAL_RANK is {local_rank}, and the node has {visible} GPUs, counted from 0: start {visible} ranks there "
            "at most (--gpus-per-node, --nproc-per-node)"
        )
    device = torch.device("cuda", local_rank if visible > 1 else 0)
    torch.cuda.set_device(device)
    return device


def transformer_config_fields(interleaved: bool, local: bool) -> dict[str, Any]:
    """Fields of Megatron's TransformerConfig that depend on the device: fused kernels exist only for CUDA.

    `local`: layers without Transformer Engine, whose kernel the fused rotary embedding is. On gloo, an interleaved
    pipeline with batch_p2p_comm gives wrong gradients without a word.
    """
    if has_gpu():
        return {"apply_rope_fusion": not local, "bias_activation_fusion": True, "bias_dropout_fusion": True,
                "persist_layer_norm": False, "masked_softmax_fusion": False,
                "batch_p2p_comm": not interleaved, "overlap_p2p_comm": interleaved}  # fmt: skip
    off = ("gradient_accumulation_fusion", "masked_softmax_fusion", "bias_activation_fusion", "bias_dropout_fusion",
           "persist_layer_norm", "batch_p2p_comm")  # fmt: skip
    return {"use_cpu_initialization": True, **dict.fromkeys(off, False)}


def synchronize() -> None:
    """Wait until the GPU has done what it was given: before a clock is read."""
    if has_gpu():
        torch.cuda.synchronize()


def identity() -> str:
    """This rank's GPU, told apart from all others of all nodes."""
    here = torch.cuda.current_device()
    return f"{torch.cuda.get_device_name(here)} {torch.cuda.get_device_properties(here).uuid} of {socket.gethostname()}"


def name() -> str:
    """The name of this rank's GPU, or "cpu"."""
    return torch.cuda.get_device_name() if has_gpu() else "cpu"


def memory_bytes() -> int:
    """Memory of this rank's GPU."""
    return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory


def peak_memory() -> int:
    """Bytes that were in use at most: of this rank's GPU or, without one, of this process."""
    if has_gpu():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
