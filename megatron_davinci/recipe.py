"""A recipe: one YAML file, checked in full before anything heavy is imported. Torch-free."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data_prep import InputError
from megatron_davinci.megatron_fields import check_megatron_fields, nearest
from megatron_davinci.models.config import ModelConfig, load_model_config

Positive = Annotated[int, Field(gt=0)]
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Blend(_Section):
    corpus: str
    """PREFIX of PREFIX.bin, PREFIX.idx and PREFIX.manifest.json."""
    repeat: Positive = 1
    """How often each document comes in one epoch; daVinci-Dev takes passing rollouts three times."""


class Batch(_Section):
    global_size: Positive
    """Units per optimizer step; daVinci-Dev: 1024 samples."""
    unit: Literal["samples", "sequences", "tokens"] = "samples"
    """samples: that many documents, packed inside the batch; sequences or tokens: out of a pack plan."""
    micro_batch_size: Positive = 1
    """Packed sequences that one forward pass takes, laid end to end in one row."""


class Schedule(_Section):
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Peak learning rate; daVinci-Dev: 8e-5, in fine-tuning 1e-5."""
    min_lr: Annotated[float, Field(ge=0)] = 0.0
    """Where the decay would arrive one step after the last."""
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of all steps over which the learning rate rises linearly; daVinci-Dev: 0.05, in fine-tuning 0.1."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """The same as a number of steps, in place of the share."""
    decay: Literal["cosine", "constant"] = "cosine"
    """What follows the warm-up."""


class Stage(_Section):
    name: Annotated[str, Field(min_length=1)]
    """For logs, the ledger and people; no two stages share one."""
    blend: Annotated[list[Blend], Field(min_length=1)]
    """The corpora of this stage, drawn together."""
    epochs: Positive = 1
    """How often the whole blend is seen."""
    plan: str | None = None
    """Pack plan for batches of sequences or tokens: from `davinci data pack` with the corpora in the blend's order,
    each as often as it is repeated; made on start, and kept beside the run, where absent."""
    loss_mask: bool = True
    """Predict only the tokens that a corpus's loss mask marks, where it has one; false: all, as in mid-training."""
    seq_length: Positive | None = None
    """In place of data.seq_length."""
    batch: Batch | None = None
    """In place of the recipe's batch."""
    megatron: dict[str, Any] = {}
    """Fields in place of the recipe's, or beside them. With another layout a stage begins in fresh processes."""
    schedule: Schedule | None = None
    """A learning rate of its own, over this stage's steps, from a fresh optimizer: fine-tuning after mid-training.
    Stages without one share the recipe's, over all their steps together."""


class Data(_Section):
    seq_length: Positive
    """Tokens of one packed sequence."""
    stages: Annotated[list[Stage], Field(min_length=1)]
    """Run in this order."""
    long_documents: Literal["error", "split", "drop"] = "error"
    """What to do with a document longer than seq_length."""


class Evaluation(_Section):
    every_steps: Positive
    """Optimizer steps between evaluations; there is one after the last step too."""
    held_out: Positive
    """Documents of each corpus that are never trained on; their loss is reported by corpus."""


class Objective(_Section):
    kind: Literal["ntp"] = "ntp"
    """ntp: next-token prediction, the mean over all labels of the global batch."""


class Checkpoint(_Section):
    dir: Annotated[str, Field(min_length=1)]
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
    """Directory whose tokenizer goes into checkpoints and exports; where absent, the model's or init_from's."""
    megatron: dict[str, Any] = {}
    """Fields of Megatron-Core's TransformerConfig, OptimizerConfig and DistributedDataParallelConfig."""
    data: Data
    """What is trained on."""
    batch: Batch
    """How much of it goes into one optimizer step."""
    schedule: Schedule
    """The learning rate."""
    objective: Objective = Objective()
    """What is minimised."""
    evaluation: Evaluation | None = None
    """Loss on held-out documents, by source; none where absent."""
    checkpoint: Checkpoint
    """Where the run lives."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1234
    """Settles initial weights and the order of documents."""

    @property
    def tokenizer_directory(self) -> Path | None:
        """Where the tokenizer for checkpoints and exports lies: as named, with the model, or with its weights."""
        named = [Path(self.tokenizer)] if self.tokenizer is not None else []
        likely = (Path(path) for path in (self.model, self.init_from) if path is not None)
        return next(iter([*named, *(path for path in likely if (path / "tokenizer.json").is_file())]), None)

    def stage(self, index: int) -> "StageRecipe":
        """A stage with everything that it takes over from the recipe."""
        stage = self.data.stages[index]
        return StageRecipe(
            name=stage.name,
            blend=stage.blend,
            epochs=stage.epochs,
            plan=stage.plan,
            loss_mask=stage.loss_mask,
            seq_length=stage.seq_length or self.data.seq_length,
            batch=stage.batch or self.batch,
            megatron={**self.megatron, **stage.megatron},
        )

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        names = [stage.name for stage in self.data.stages]
        if len(set(names)) < len(names):
            raise InputError(f"data.stages have the names {', '.join(names)}: give each its own")
        model = load_model_config(self.model)
        for index, stage in enumerate(self.data.stages):
            for fields in (self.megatron, stage.megatron):
                check_megatron_fields(fields)
            check_stage(self.stage(index), model)
            if self.stage(index).optimizer_kind != self.stage(0).optimizer_kind:
                raise InputError(
                    f"stage {stage.name} has another {' or '.join(_OPTIMIZER_KIND)} than the first: Megatron's saved "
                    "optimizer cannot be taken up so; set them for all stages"
                )
            if stage.plan and self.evaluation:
                raise InputError(
                    f"stage {stage.name} has a plan, which packs every document, and evaluation.held_out keeps some "
                    "back: leave one of them out"
                )
        if self.init_from is not None:
            check_source_of_weights(self.init_from, self.model, model)
        return self


def check_source_of_weights(directory: str, name: str, model: ModelConfig) -> None:
    """Raise InputError unless a directory holds a Hugging Face model of the same architecture as `model`."""
    if not (Path(directory) / "config.json").is_file():
        raise InputError(f"init_from {directory} has no config.json: give a Hugging Face directory with weights")
    if load_model_config(directory).architecture() != model.architecture():
        raise InputError(f"init_from {directory} has another architecture than model {name}: give the same for both")
    if not any((Path(directory) / file).is_file() for file in WEIGHT_FILES):
        raise InputError(f"init_from {directory} has no {' and no '.join(WEIGHT_FILES)}")


_OPTIMIZER_KIND = {"use_distributed_optimizer": False, "bf16": False}


@dataclass(frozen=True)
class StageRecipe:
    """One stage, resolved: nothing is left to look up in the recipe."""

    name: str
    blend: list[Blend]
    epochs: int
    plan: str | None
    loss_mask: bool
    seq_length: int
    batch: Batch
    megatron: dict[str, Any]

    @property
    def tensor_parallel_size(self) -> int:
        """Ranks that share every layer."""
        return int(self.megatron.get("tensor_model_parallel_size", 1))

    @property
    def pipeline_parallel_size(self) -> int:
        """Ranks that share the layers among them."""
        return int(self.megatron.get("pipeline_model_parallel_size", 1))

    @property
    def virtual_pipeline_size(self) -> int | None:
        """Chunks of layers per pipeline rank, None without interleaving."""
        return self.megatron.get("virtual_pipeline_model_parallel_size")

    @property
    def context_parallel_size(self) -> int:
        """Ranks that share every sequence."""
        return int(self.megatron.get("context_parallel_size", 1))

    @property
    def parallel_sizes(self) -> tuple[int, int, int | None, int]:
        """Tensor, pipeline, virtual pipeline and context: what process groups hang on."""
        return (
            self.tensor_parallel_size,
            self.pipeline_parallel_size,
            self.virtual_pipeline_size,
            self.context_parallel_size,
        )

    @property
    def ranks_per_replica(self) -> int:
        """Processes that hold one copy of the model; more are data-parallel."""
        return self.tensor_parallel_size * self.pipeline_parallel_size * self.context_parallel_size

    @property
    def optimizer_kind(self) -> dict[str, Any]:
        """What a saved optimizer can be taken up by: all stages of a run agree on it."""
        return {name: self.megatron.get(name, default) for name, default in _OPTIMIZER_KIND.items()}

    @property
    def document_alignment(self) -> int:
        """Each document takes room up to a multiple of this: context parallelism cuts it into 2 * CP equal chunks."""
        return 2 * self.context_parallel_size if self.context_parallel_size > 1 else 1


def check_stage(stage: StageRecipe, model: ModelConfig) -> None:
    """Raise InputError where a size is no multiple of what it is divided by, naming the next valid value."""
    tp, pp, cp = stage.tensor_parallel_size, stage.pipeline_parallel_size, stage.context_parallel_size
    chunks = stage.virtual_pipeline_size
    if chunks is not None and (chunks < 2 or pp < 2):
        raise InputError(
            f"virtual_pipeline_model_parallel_size is {chunks} with pipeline_model_parallel_size {pp}: interleaving "
            "needs at least 2 of each; leave it out"
        )
    by_tp = "tensor_model_parallel_size"
    layers_by = "pipeline_model_parallel_size" + (" x virtual_pipeline_model_parallel_size" if chunks else "")
    for what, value, by, divisor in (
        ("num_attention_heads", model.num_attention_heads, by_tp, tp),
        ("num_query_groups", model.num_query_groups, by_tp, tp),
        ("ffn_hidden_size", model.ffn_hidden_size, by_tp, tp),
        ("the padded vocabulary", model.padded_vocab_size, by_tp, tp),
        ("num_layers", model.num_layers, layers_by, pp * (chunks or 1)),
        ("seq_length", stage.seq_length, "2 x context_parallel_size", 2 * cp if cp != 1 else 1),
    ):
        require_multiple(what, value, by, divisor)
    if model.padded_vocab_size // tp * (tp - 1) >= model.vocab_size:
        raise InputError(f"vocab_size is {model.vocab_size}: {by_tp} = {tp} leaves a rank nothing but padding")
    if stage.megatron.get("recompute_method") == "uniform":
        require_multiple(
            "the number of layers of a pipeline chunk",
            model.num_layers // (pp * (chunks or 1)),
            "recompute_num_layers",
            stage.megatron.get("recompute_num_layers") or 1,
        )
    if stage.megatron.get("overlap_param_gather") and not stage.megatron.get("use_distributed_optimizer"):
        raise InputError("overlap_param_gather has nothing to gather without use_distributed_optimizer: set both")
    if stage.megatron.get("sequence_parallel"):
        require_multiple("seq_length", stage.seq_length, f"context_parallel_size x {by_tp}", cp * tp)
    if stage.batch.unit == "tokens":
        require_multiple("batch.global_size", stage.batch.global_size, "seq_length", stage.seq_length)
    if stage.plan and stage.batch.unit == "samples":
        raise InputError(
            f"stage {stage.name} has a plan, but batches of samples are packed inside the batch: leave plan out, or "
            "set batch.unit to sequences"
        )


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
