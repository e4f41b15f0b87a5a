"""Whether two checkpoints hold the same weights, whatever form each has: compared under Hugging Face's names."""

from pathlib import Path

import torch

from megatron_davinci.weights.open_weights import open_weights
from megatron_davinci.weights.tensor_plan import PlannedTensor


def differences(one: Path, other: Path, model: str | None = None) -> list[str]:
    """What is different, one line for each tensor; empty where every number is the same. Raises InputError.

    `model`: see `open_weights`.
    """
    first, second = ({t.name: t for t in open_weights(path, model).huggingface_tensors()} for path in (one, other))
    missing = [f"{other} has no {name}" for name in first if name not in second]
    missing += [f"{one} has no {name}" for name in second if name not in first]
    types = {(target.dtype, second[name].dtype) for name, target in first.items() if name in second}
    if not missing and len(types) == 1 and len(set(*types)) == 2:
        [(mine, theirs)] = types
        return [f"all {len(first)} tensors: types {mine} and {theirs}; compare conversions to one --dtype"]
    return missing + [
        f"{name}: {said}"
        for name, target in first.items()
        if name in second
        if (said := _compare(target, second[name]))
    ]


def _compare(one: PlannedTensor, other: PlannedTensor) -> str:
    if one.shape != other.shape:
        return f"shapes {list(one.shape)} and {list(other.shape)}"
    if one.dtype != other.dtype:
        return f"types {one.dtype} and {other.dtype}"
    different, largest = 0, 0.0
    for mine, theirs in zip(one.slices(), other.slices(), strict=True):
        if not mine.view(torch.uint8).equal(theirs.view(torch.uint8)):  # bits: nothing equals a NaN
            different += max(1, int((mine != theirs).sum()))
            largest = max(largest, float((mine.double() - theirs.double()).abs().max()))
    return f"{different} numbers differ, by up to {largest:.3g}" if different else ""
