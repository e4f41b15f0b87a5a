"""Weights on disk in either form, with the model they are of: nothing is read before somebody asks for rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data_prep import InputError
from megatron_davinci.models.config import ModelConfig, load_model_config
from megatron_davinci.weights.foreign_configs import check_description
from megatron_davinci.weights.paths import find_checkpoint
from megatron_davinci.weights.safetensors_files import huggingface_tensors
from megatron_davinci.weights.stored_tensors import StoredTensor, megatron_tensors
from megatron_davinci.weights.tensor_plan import (
    PlannedTensor,
    plan_copy,
    plan_huggingface,
    plan_megatron,
    plan_whole,
    same_numbers,
)

_OLD_BUFFERS = ("rotary_emb.inv_freq", "_extra_state")
_EMBEDDING, _OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class Weights:
    """`tensors` by the names of their form: Megatron's, or Hugging Face's."""

    directory: Path
    model: ModelConfig
    tensors: Mapping[str, StoredTensor]
    is_megatron: bool

    def huggingface_tensors(self) -> list[PlannedTensor]:
        """Under Hugging Face's names. Raises InputError where Megatron's do not fit the model."""
        if self.is_megatron:
            return plan_huggingface(self.tensors, self.model, self.directory)
        return [plan_whole(name, tensor) for name, tensor in self.tensors.items()]

    def megatron_tensors(self) -> list[PlannedTensor]:
        """Under Megatron's names. Raises InputError where they do not fit the model."""
        make = plan_copy if self.is_megatron else plan_megatron
        return make(self.tensors, self.model, self.directory)


def open_weights(path: Path, model: str | None = None) -> Weights:
    """A Hugging Face directory, a torch_dist checkpoint, or a run's latest one.

    `model`, a preset or a Hugging Face directory, says what a checkpoint holds that does not say it itself.
    """
    if find_checkpoint(path) is not None:
        return open_checkpoint(path, model)
    if (path / "config.json").is_file():
        return open_huggingface(path)
    if not path.exists():
        raise InputError(f"{path} does not exist")
    raise InputError(f"{path} is neither a torch_dist checkpoint, nor a run with one, nor a Hugging Face directory")


def open_checkpoint(path: Path, model: str | None = None) -> Weights:
    """A torch_dist checkpoint of this project's, Megatron-LM's or Megatron-Bridge's; see `open_weights`."""
    directory = find_checkpoint(path)
    if directory is None:
        raise InputError(
            f"{path} is no torch_dist checkpoint: give a step_NNNNNNN or iter_NNNNNNN directory, or that of a run"
        )
    own = load_model_config(str(directory / "hf")) if (directory / "hf" / "config.json").is_file() else None
    config = own if model is None else load_model_config(model)
    if config is None:
        raise InputError(f"{directory} does not say what model it is of: name a preset or Hugging Face directory")
    if own is not None and own.architecture() != config.architecture():
        raise InputError(f"{directory} is of another architecture than {model}: leave the model out, it says it itself")
    check_description(directory, config)
    return Weights(directory, config, _without_buffers(megatron_tensors(directory)), True)


def open_huggingface(path: Path) -> Weights:
    """Where embeddings are tied, a second copy of them is left out; one that differs is an InputError."""
    if not path.is_dir():
        raise InputError(f"{path} is no directory: give a Hugging Face directory with weights")
    model = load_model_config(str(path))
    tensors = _without_buffers(huggingface_tensors(path))
    if model.tied_embeddings and _OUTPUT in tensors and _EMBEDDING in tensors:
        copy = tensors.pop(_OUTPUT)
        if not same_numbers(plan_whole(_OUTPUT, copy), plan_whole(_EMBEDDING, tensors[_EMBEDDING])):
            raise InputError(
                f"{path} ties its embeddings (config.json), but {_OUTPUT} has other numbers than {_EMBEDDING}: set "
                "tie_word_embeddings to false, or remove the tensor"
            )
    return Weights(path, model, tensors, False)


def _without_buffers(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(_OLD_BUFFERS)}
