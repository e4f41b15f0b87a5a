"""Whether two checkpoints hold the same weights, whatever form each has: compared under Hugging Face's names."""

from pathlib import Path

import torch

from data_prep import InputError
from megatron_davinci.checkpoint.files import latest_checkpoint
from megatron_davinci.checkpoint.sources import huggingface_tensors, megatron_tensors
from megatron_davinci.checkpoint.targets import Stretch, Target, huggingface_targets
from megatron_davinci.models.config import load_model_config


def differences(one: Path, other: Path) -> list[str]:
    """What is different, one line for each tensor; empty where every number is the same. Raises InputError."""
    first, second = _weights(one), _weights(other)
    missing = [f"{other} has no {name}" for name in first if name not in second]
    missing += [f"{one} has no {name}" for name in second if name not in first]
    return missing + [
        f"{name}: {said}"
        for name, target in first.items()
        if name in second
        if (said := _compare(target, second[name]))
    ]


def _weights(path: Path) -> dict[str, Target]:
    directory = latest_checkpoint(path) or path
    if (directory / ".metadata").is_file():
        model = load_model_config(str(directory / "hf"))
        targets = huggingface_targets(megatron_tensors(directory), model, directory)
        return {target.name: target for target in targets}
    if not (directory / "config.json").is_file():
        raise InputError(f"{path} is neither a checkpoint nor a Hugging Face directory")
    tensors = huggingface_tensors(directory)
    return {name: Target(name, tensor.shape, [Stretch(tensor, 0, tensor.shape[0])]) for name, tensor in tensors.items()}


def _compare(one: Target, other: Target) -> str:
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
