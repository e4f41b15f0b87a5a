"""Packages: is each there, the right one, in a version that is known to do?"""

import importlib
import platform
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from data_prep import InputError
from data_prep.io.extras import command_for
from megatron_davinci.doctor.finding import Finding, fail, ok, warn
from megatron_davinci.serve.environment import DEFAULT_DIRECTORY, find_environment

_OLDEST_PYTHON = (3, 11)
_MEGATRON = ((0, 16, 1), (0, 20))  # from, and before
_NOT_TRIED = ((0, 17), (0, 18))
_RECOMMENDED = "megatron-core>=0.19.2,<0.20" if sys.version_info >= (3, 12) else "megatron-core==0.16.1"
_DATA_ALONE = "not installed: davinci data works, training does not"
_CUDNN_ON_HOPPER = 91800
Versions = Callable[[str], str]


def check_python() -> Finding:
    """The interpreter."""
    found = platform.python_version()
    if sys.version_info < _OLDEST_PYTHON:
        return fail("Python", found, "use Python 3.11 or newer")
    return ok("Python", found)


def check_extension() -> Finding:
    """The compiled part of data_prep."""
    try:
        native = importlib.import_module("data_prep._native")
    except ImportError as error:
        return fail(
            "compiled extension", str(error), "build it: pip install --no-build-isolation -e . (a C++20 compiler)"
        )
    return ok("compiled extension", Path(str(native.__file__)).name)


def check_megatron(known: Versions = version) -> Finding:
    """Megatron-Core in a version that the tests know."""
    try:
        found = known("megatron-core")
    except PackageNotFoundError:
        return warn("Megatron-Core", _DATA_ALONE, "for training: " + command_for("train"))
    numbers = tuple(int(part) for part in found.split(".")[:3] if part.isdigit())
    if not _MEGATRON[0] <= numbers < _MEGATRON[1]:
        return fail("Megatron-Core", found, "pip install '" + _RECOMMENDED + "'")
    if numbers[:2] in _NOT_TRIED:
        return warn("Megatron-Core", f"{found}, with which the tests were not run", f"pip install '{_RECOMMENDED}'")
    return ok("Megatron-Core", found)


def check_torch() -> Finding:
    """torch, and whether it is a build for GPUs."""
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:  # OSError: a shared library that is missing
        if find_spec("torch") is None:
            return warn("torch", _DATA_ALONE, "for training: pip install torch, then " + command_for("train"))
        return fail("torch", str(error), "install a torch that fits this machine")
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    return ok("torch", f"{torch.__version__}, {build}")


def check_apex() -> Finding:
    """NVIDIA's Apex, or the project of that name on PyPI, which is another."""
    found = find_spec("apex")
    if found is None:
        return ok("Apex", "not installed, and not needed: Transformer Engine has the fused optimizer and norms")
    place = Path(next(iter(found.submodule_search_locations or [str(found.origin)])))
    if not (place / "optimizers").is_dir():
        return fail(
            "Apex",
            f"{place} is not NVIDIA's: PyPI's apex is another project",
            "pip uninstall apex; NVIDIA's is built from github.com/NVIDIA/apex",
        )
    return ok("Apex", f"NVIDIA's, in {place}")


def check_transformer_engine(gpu: bool, why_no_local: str = "") -> Finding:
    """Transformer Engine, whose layers train on a GPU; `why_no_local`: the reason for which no others can."""
    name, remedy = "Transformer Engine", "in the checkout: pip install --no-build-isolation '.[gpu]'"
    if find_spec("transformer_engine") is None:
        if not gpu:
            return ok(name, "not installed, and not needed without a GPU")
        if why_no_local:
            return fail(name, f"not installed, there is a GPU, and {why_no_local}", remedy)
        return warn(name, "not installed: Megatron's local layers train in its place, in bf16, without FP8", remedy)
    try:
        importlib.import_module("transformer_engine.pytorch")
    except Exception as error:  # whatever a library built for another torch raises
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        return fail(name, f"does not import: {first}", "build it against this torch: --no-build-isolation")
    return ok(name, version("transformer_engine"))


def check_cudnn(capability: tuple[int, int] | None) -> Finding:
    """cuDNN, whose attention over packed rows Transformer Engine may choose; `capability`: that of the GPU, if any."""
    version_of = importlib.import_module("torch").backends.cudnn.version()
    if version_of is None:
        return ok("cuDNN", "not in this torch, and not needed without a GPU")
    said = f"{version_of // 10000}.{version_of // 100 % 100}.{version_of % 100}"
    if capability is not None and capability[0] == 9 and version_of < _CUDNN_ON_HOPPER:
        return warn(
            "cuDNN",
            f"{said}: before 9.18 gradients of packed rows may be wrong on Hopper (TransformerEngine issue 2186)",
            "a torch with a newer one (2.11 has 9.19), or megatron.attention_backend=flash",
        )
    return ok("cuDNN", said)


def check_flash_attention(gpu: bool) -> Finding:
    """flash-attn, which Transformer Engine may call."""
    if find_spec("flash_attn") is None:
        return ok("flash-attn", "not installed, and not needed: Transformer Engine has cuDNN's attention")
    if not gpu:
        return warn("flash-attn", "installed, and there is no GPU", "nothing, unless a GPU should be here")
    return ok("flash-attn", version("flash-attn"))


def check_vllm(directory: Path = Path(DEFAULT_DIRECTORY)) -> Finding:
    """vLLM's own environment, where rollouts and served models want one."""
    try:
        found = find_environment(directory)
    except InputError as error:
        said, _, _ = str(error).partition(": ")
        return warn("vLLM", f"{said}; rollouts of engine vllm and davinci serve need one", "davinci rollout setup")
    return ok("vLLM", f"{found.version} for {'CPUs' if found.on_cpu else 'GPUs'} in {directory}")
