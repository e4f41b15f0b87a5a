"""A recipe: one YAML file, checked in full before anything heavy is imported. Torch-free."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data_prep import InputError
from megatron_davinci.megatron_fields import check_megatron_fields, nearest
from megatron_davinci.models.config import ModelConfig, load_model_config

Positive = Annotated[int, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Blend(_Section):
    corpus: str
    """PREFIX of PREFIX.bin, PREFIX.idx and PREFIX.manifest.json."""
    repeat: Positive = 1
    """How often each document comes in one epoch; daVinci-Dev takes passing rollouts three times."""


class Stage(_Section):
    name: str
    """For logs and for people."""
    blend: Annotated[list[Blend], Field(min_length=1)]
    """The corpora of this stage, drawn together."""
    epochs: Positive = 1
    """How often the whole blend is seen."""
    plan: str | None = None
    """Pack plan for batches of sequences or tokens: from `davinci data pack` with the corpora in the blend's order,
    each as often as it is repeated; made on start where absent."""


class Data(_Section):
    seq_length: Positive
    """Tokens of one packed sequence."""
    stages: Annotated[list[Stage], Field(min_length=1)]
    """Run in this order."""
    long_documents: Literal["error", "split", "drop"] = "error"
    """What to do with a document longer than seq_length."""


class Batch(_Section):
    global_size: Positive
    """Units per optimizer step; daVinci-Dev: 1024 samples."""
    unit: Literal["samples", "sequences", "tokens"] = "samples"
    """samples: that many documents, packed inside the batch; sequences or tokens: out of a pack plan."""
    micro_batch_size: Positive = 1
    """Packed sequences that one forward pass takes, laid end to end in one row."""


class Schedule(_Section):
    lr: Annotated[float, Field(gt=0)]
    """Peak learning rate; daVinci-Dev: 8e-5."""
    min_lr: Annotated[float, Field(ge=0)] = 0.0
    """Where the decay would arrive one step after the last."""
    warmup_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of all steps over which the learning rate rises linearly; daVinci-Dev: 0.05."""
    decay: Literal["cosine", "constant"] = "cosine"
    """What follows the warm-up."""


class Objective(_Section):
    kind: Literal["ntp"] = "ntp"
    """ntp: next-token prediction, the mean over all labels of the global batch."""


class Checkpoint(_Section):
    dir: str
    """Directory of the run: step_NNNNNNN/, latest, metrics."""
    every_steps: Positive = 200
    """Optimizer steps between checkpoints; the last step is always saved."""
    keep: Positive = 3
    """How many of the newest checkpoints stay."""


class Recipe(_Section):
    model: str
    """A preset of this package, or a Hugging Face directory, whose config.json is then the model."""
    init_from: str | None = None
    """Hugging Face directory with the weights to start from; where absent, they are drawn from `seed`."""
    tokenizer: str | None = None
    """Directory whose tokenizer goes into checkpoints and exports; the model's directory where absent."""
    megatron: dict[str, Any] = {}
    """Fields of Megatron-Core's TransformerConfig and OptimizerConfig, spelled its way."""
    data: Data
    """What is trained on."""
    batch: Batch
    """How much of it goes into one optimizer step."""
    schedule: Schedule
    """The learning rate."""
    objective: Objective = Objective()
    """What is minimised."""
    checkpoint: Checkpoint
    """Where the run lives."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1234
    """Settles initial weights and the order of documents."""

    def parallel_size(self, name: str) -> int:
        """Ranks along one dimension: tensor or pipeline."""
        return int(self.megatron.get(f"{name}_model_parallel_size", 1))

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        check_megatron_fields(self.megatron)
        model = load_model_config(self.model)
        check_sizes(self, model)
        if self.init_from is not None:
            check_source_of_weights(self.init_from, self.model, model)
        return self


def check_source_of_weights(directory: str, name: str, model: ModelConfig) -> None:
    """Raise InputError unless a directory holds a Hugging Face model of the same architecture as `model`."""
    if not (Path(directory) / "config.json").is_file():
        raise InputError(f"init_from {directory} has no config.json: give a Hugging Face directory with weights")
    if not load_model_config(directory).same_architecture(model):
        raise InputError(f"init_from {directory} has another architecture than model {name}: give the same for both")


def check_sizes(recipe: Recipe, model: ModelConfig) -> None:
    """Raise InputError where a size is no multiple of what it is divided by, naming the next valid value."""
    tp, pp = recipe.parallel_size("tensor"), recipe.parallel_size("pipeline")
    divisions = [
        ("num_attention_heads", model.num_attention_heads, "tensor_model_parallel_size", tp),
        ("num_query_groups", model.num_query_groups, "tensor_model_parallel_size", tp),
        ("ffn_hidden_size", model.ffn_hidden_size, "tensor_model_parallel_size", tp),
        ("vocab_size", model.vocab_size, "tensor_model_parallel_size", tp),
        ("num_layers", model.num_layers, "pipeline_model_parallel_size", pp),
    ]
    if recipe.megatron.get("sequence_parallel"):
        divisions.append(("data.seq_length", recipe.data.seq_length, "tensor_model_parallel_size", tp))
    if recipe.batch.unit == "tokens":
        divisions.append(("batch.global_size", recipe.batch.global_size, "data.seq_length", recipe.data.seq_length))
    for what, value, by, divisor in divisions:
        require_multiple(what, value, by, divisor)
    for stage in recipe.data.stages:
        if stage.plan and recipe.batch.unit == "samples":
            raise InputError(f"stage {stage.name} has a plan, but batches of samples are packed inside the batch: "
                             "leave plan out, or set batch.unit to sequences")  # fmt: skip


def require_multiple(what: str, value: int, by: str, divisor: int) -> None:
    """Raise InputError unless `value` is a multiple of `divisor`."""
    if divisor < 1:
        raise InputError(f"{by} is {divisor}; it must be at least 1")
    if value % divisor:
        following = (value // divisor + 1) * divisor
        raise InputError(
            f"{what} is {value}, which {by} = {divisor} does not divide: the next valid value is {following}"
        )


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 8e-5 as text; a learning rate must be a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def load_recipe(path: Path, overrides: list[str]) -> Recipe:
    """Read and check a recipe; `overrides` are key=value with dots between levels. Raises InputError."""
    try:
        values = yaml.load(path.read_bytes(), _Loader)  # noqa: S506  # a SafeLoader
    except OSError as error:
        raise InputError(f"recipe {path} cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise InputError(f"recipe {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"recipe {path} holds no keys")
    for override in overrides:
        _apply_override(values, override)
    return parse_recipe(values)


def parse_recipe(values: dict[str, Any]) -> Recipe:
    """Check the values of a recipe. Raises InputError with one sentence on the first thing that is wrong."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise InputError(_sentence(error)) from None


def dump_recipe(recipe: Recipe) -> str:
    """YAML of a recipe with every default written out; load_recipe reads it back."""
    return yaml.safe_dump(recipe.model_dump(), sort_keys=False)


def _apply_override(values: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals:
        raise InputError(f"override '{override}' is not key=value")
    try:
        value = yaml.load(text, _Loader)  # noqa: S506  # a SafeLoader
    except yaml.YAMLError:
        raise InputError(f"override '{override}': {text!r} is not YAML") from None
    *parents, last = path.split(".")
    target: Any = values
    for key in parents:
        if isinstance(target, list) and key.isdigit() and int(key) < len(target):
            target = target[int(key)]
        elif isinstance(target, dict):
            target = target.setdefault(key, {})
        else:
            raise InputError(f"override '{override}': the recipe has no section {key} there")
    if not isinstance(target, dict):
        raise InputError(f"override '{override}' names no key of a section")
    target[last] = value


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown recipe key '{where}'{nearest(str(first['loc'][-1]), _known_keys(first['loc'][:-1]))}"
    if first["type"] == "missing":
        return f"the recipe lacks '{where}'"
    message = first["msg"].removeprefix("Value error, ")
    return f"{where} is {first['input']!r}: {message}" if where else message


def _known_keys(path: tuple[int | str, ...]) -> list[str]:
    """Keys of the section at `path`."""
    section: Any = Recipe
    for key in path:
        if isinstance(key, int):
            continue
        annotation = section.model_fields[key].annotation
        inner = next((a for a in getattr(annotation, "__args__", ()) if isinstance(a, type)), annotation)
        section = getattr(inner, "__origin__", inner)
    return list(section.model_fields)
