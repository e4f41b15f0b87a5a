"""Devices that a plan can be made for: the shipped ones, and those that `davinci bench train --calibrate` has fitted.

Torch-free.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import yaml

from data_prep import InputError
from data_prep.io.files import read_regular_file
from megatron_davinci.config.stage import StageRecipe
from megatron_davinci.models.flops import dense_peak
from megatron_davinci.models.memory import GIB

_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Device:
    """Peaks in FLOP/s, bytes/s of memory and of one direction of a link, and shares of them that are reached.

    `devices.yaml` says what each field means.
    """

    name: str
    names: tuple[str, ...]
    flops: float
    memory_bandwidth: float
    link: float
    network: float
    memory_gib: float
    gpus_per_node: int
    gemm: float
    gemm_fp8: float
    attention: float
    memory_share: float
    link_share: float
    network_share: float
    gemm_seconds: float
    layer_seconds: float
    exchange_seconds: float
    hop_seconds: float
    ring_seconds: float
    step_seconds: float
    units: int | None
    tensor_overlap: float = 0.0
    """Share of tensor parallelism's exchange that hides behind products: none, since tp_comm_overlap is refused."""

    def with_constants(self, constants: Mapping[str, float], name: str | None = None) -> Self:
        """The device with other constants, which may have another name."""
        changed: dict[str, Any] = {**constants, "name": name or self.name}
        return replace(self, **changed)

    @property
    def memory(self) -> float:
        """Bytes of one device."""
        return self.memory_gib * GIB

    @property
    def has_fp8(self) -> bool:
        """Whether its products can be computed in FP8."""
        return dense_peak(self.names[0], fp8=True)[0] is not None

    @property
    def is_gpu(self) -> bool:
        """Whether its layers are Transformer Engine's."""
        return self.units is None


def find_device(name: str) -> Device:
    """A shipped device by its name, or a calibrated one by its file's path. Raises InputError."""
    shipped = _shipped()
    if name.lower() in shipped:
        return _device(name.lower(), shipped[name.lower()])
    if not Path(name).suffix:
        raise InputError(f"--gpu is {name!r}; give {', '.join(shipped)}, or a file of davinci bench train --calibrate")
    return read_device(Path(name))


def device_of(reported: str) -> Device | None:
    """The shipped device that a GPU's own name belongs to, None for another."""
    for name, values in _shipped().items():
        if any(known in reported for known in values["names"]):
            return _device(name, values)
    return None


def read_device(path: Path) -> Device:
    """A device from a file that calibration has written, or of what differs from a device that it is `like`.

    Raises InputError.
    """
    try:
        values = yaml.safe_load(read_regular_file(path, _MOST_BYTES))
    except yaml.YAMLError:
        raise InputError(f"{path} is not YAML: give a file of davinci bench train --calibrate") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no device: give a file of davinci bench train --calibrate")
    if (like := values.pop("like", None)) is not None:
        values = {**_like(path, like), **values}
    wanted = {each.name for each in fields(Device)} - {"name"}
    unknown = sorted(str(name) for name in values.keys() - wanted)
    absent = sorted(_required() - values.keys())
    if unknown or absent:
        what = f"has {unknown[0]}, which is no constant of a device" if unknown else f"lacks {absent[0]}"
        raise InputError(f"{path} {what}: write it again with davinci bench train --calibrate")
    for name, value in values.items():
        _check_constant(path, name, value)
    return _device(path.stem, values)


def _like(path: Path, name: Any) -> dict[str, Any]:
    shipped = _shipped()
    if not isinstance(name, str) or name not in shipped:
        raise InputError(f"{path} is like {name!r}; give {', '.join(shipped)}")
    return shipped[name]


def check_fp8_of(device: Device, stage: StageRecipe) -> None:
    """Raise InputError where a stage wants FP8 of a device that has none."""
    if stage.megatron.fp8 and not device.has_fp8:
        raise InputError(
            f"stage {stage.name} has fp8 {stage.megatron.fp8}, which {device.name} cannot compute in: leave fp8 "
            "out, or name a GPU that can (h100, h200, b200)"
        )


def _check_constant(path: Path, name: str, value: Any) -> None:
    """Raise InputError for a value that a constant cannot have."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if name == "names":
        right, wanted = isinstance(value, list) and all(isinstance(each, str) for each in value), "a list of names"
    elif name in ("gpus_per_node", "units"):
        right = (type(value) is int and value >= 1) or (name == "units" and value is None)
        wanted = "a whole number of at least 1"
    elif name == "tensor_overlap":
        right, wanted = is_number and 0 <= value < 1, "a share below 1"
    else:
        right, wanted = is_number and 0 < value < float("inf"), "a positive number"
    if not right:
        raise InputError(f"{path} has {name} {value!r}; it must be {wanted}")


def _required() -> set[str]:
    return {each.name for each in fields(Device)} - {"name", "tensor_overlap"}


def _device(name: str, values: dict[str, Any]) -> Device:
    return Device(name=name, **{**values, "names": tuple(values["names"])})


@cache
def _shipped() -> dict[str, dict[str, Any]]:
    """Constants by name, each with those that it takes over."""
    given = yaml.safe_load((files("megatron_davinci") / "plan" / "devices.yaml").read_text())
    found: dict[str, dict[str, Any]] = {}
    for name, values in given.items():
        found[name] = {**found.get(values.pop("like", ""), {}), **values}
    return found
