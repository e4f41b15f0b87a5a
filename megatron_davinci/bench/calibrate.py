"""A device's constants from trials on this machine: what `davinci plan --gpu FILE` then counts with. Torch-free."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from data_prep import InputError
from data_prep.io.files import new_file
from megatron_davinci.config import load_recipe
from megatron_davinci.config.stage import StageRecipe
from megatron_davinci.models.config import ModelConfig, load_model_config
from megatron_davinci.plan.devices import Device, device_of
from megatron_davinci.plan.estimate import Workload, estimate
from megatron_davinci.plan.fit import fit_constants
from megatron_davinci.plan.lengths import stage_lengths
from megatron_davinci.plan.search import planned

# Where fitting begins on a machine without a GPU: the order of magnitude of one core.
_CPU = Device(
    name="cpu", names=("cpu",), flops=5e10, memory_bandwidth=1e10, link=2e9, network=2e9, memory_gib=0.0,
    gpus_per_node=1, gemm=1.0, gemm_fp8=0.5, attention=0.3, memory_share=1.0, link_share=1.0, network_share=1.0,
    gemm_seconds=1e-5, layer_seconds=1e-4, exchange_seconds=1e-4, hop_seconds=1e-4, ring_seconds=1e-4,
    step_seconds=0.01, units=1,
)  # fmt: skip
_CPU_CONSTANTS = ("flops", "attention", "memory_bandwidth", "link", "layer_seconds", "exchange_seconds", "hop_seconds",
                  "step_seconds")  # fmt: skip
_GPU_CONSTANTS = ("gemm", "gemm_fp8", "attention", "memory_share", "link_share", "network_share")
_RANGE = 100.0  # a constant may move by this factor; shares stay below 1


@dataclass(frozen=True)
class MeasuredTrial:
    """A layout whose median step took `seconds` on `ranks` ranks."""

    stage: StageRecipe
    model: ModelConfig
    ranks: int
    workload: Workload
    seconds: float

    @classmethod
    def read(cls, recipe: Path, trial: Mapping[str, Any]) -> "MeasuredTrial":
        """A line of what `bench.train.run_trials` gives."""
        known = load_recipe(recipe, list(trial["overrides"]), with_weights=False)
        stage = known.stage(0)
        workload = Workload.of(stage, stage_lengths(stage, None))
        return cls(stage, load_model_config(known.model), trial["ranks"], workload, trial["figures"]["seconds_median"])

    def predict(self, device: Device) -> float:
        """Seconds of a step."""
        layout = planned(self.stage, self.ranks, device)
        return estimate(self.stage, self.model, layout, device, self.workload).step_seconds


def calibrate(recipe: Path, trials: Sequence[Mapping[str, Any]], name: str) -> tuple[Device, list[float]]:
    """A device that explains trials, and by trial the predicted seconds over the measured ones. Raises InputError."""
    measured = [MeasuredTrial.read(recipe, trial) for trial in trials if trial.get("figures")]
    if not measured:
        raise InputError("no trial ended with figures, so there is nothing to calibrate with: see why each did not run")
    machine = next(trial["machine"] for trial in trials if trial.get("figures"))
    start, fitted = _start(machine["device"], max(trial.ranks for trial in measured))
    before = {constant: float(getattr(start, constant)) for constant in fitted}
    bounds = {constant: (value / _RANGE, _most(constant, value)) for constant, value in before.items()}

    def errors(constants: Mapping[str, float]) -> list[float]:
        device = start.with_constants(constants)
        return [trial.predict(device) / trial.seconds for trial in measured]

    device = start.with_constants(fit_constants(before, bounds, errors), name)
    return device, [trial.predict(device) / trial.seconds for trial in measured]


def _most(constant: str, value: float) -> float:
    """Shares of a peak stay below 1."""
    is_share = value <= 1 and not constant.endswith("seconds")
    return min(1.0, value * _RANGE) if is_share else value * _RANGE


def _start(reported: str, ranks: int) -> tuple[Device, tuple[str, ...]]:
    """Where fitting begins, and the constants that it may change."""
    if reported == "cpu":
        cores, memory = len(os.sched_getaffinity(0)), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        shared = memory / 2**30 / max(ranks, cores)
        return replace(_CPU, gpus_per_node=max(ranks, cores), units=cores, memory_gib=shared), _CPU_CONSTANTS
    known = device_of(reported)
    if known is None:
        raise InputError(f"{reported} is no device that a plan knows: copy an entry of plan/devices.yaml to a file of "
                         "its own, and give it to davinci plan --gpu")  # fmt: skip
    return known, _GPU_CONSTANTS


def write_device(device: Device, path: Path) -> None:
    """A file that `plan.devices.read_device` reads."""
    values = {name: value for name, value in asdict(device).items() if name != "name"}
    with new_file(path) as part:
        part.write_text(yaml.safe_dump({**values, "names": list(device.names)}, sort_keys=False))
