"""A recipe: one YAML file, checked in full before anything heavy is imported. Torch-free."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from data_prep import InputError
from megatron_davinci.config.megatron_fields import check_megatron_fields
from megatron_davinci.config.objectives import Ntp, ObjectiveSection
from megatron_davinci.config.section import ModelPath, Section, TokenizerPath, WeightsPath
from megatron_davinci.config.sections import (
    Batch,
    Checkpoint,
    Data,
    Evaluation,
    FaultTolerance,
    ReportOptions,
    Schedule,
    Wandb,
)
from megatron_davinci.config.stage import OPTIMIZER_KIND, StageRecipe, check_stage
from megatron_davinci.models.config import ModelConfig, load_model_config
from megatron_davinci.models.parallel_layout import MegatronOptions
from megatron_davinci.weights.paths import find_checkpoint

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")


class Recipe(Section):
    model: ModelPath
    """A preset of this package, or a Hugging Face directory, whose config.json is then the model, or OWNER/NAME of the
    Hugging Face hub."""
    init_from: WeightsPath | None = None
    """Weights to start from: a Hugging Face directory, OWNER/NAME of its hub, or a torch_dist checkpoint or a run with
    one, of which nothing but the weights is taken; where absent, they are drawn from `seed`."""
    tokenizer: TokenizerPath | None = None
    """Directory whose tokenizer goes into checkpoints and exports; where absent, the model's or init_from's."""
    megatron: dict[str, Any] = Field(default_factory=dict)
    """Fields of Megatron-Core's TransformerConfig, OptimizerConfig and DistributedDataParallelConfig."""
    data: Data
    """What is trained on."""
    batch: Batch
    """How much of it goes into one optimizer step."""
    schedule: Schedule
    """The learning rate."""
    objective: ObjectiveSection = Ntp()
    """What is minimised."""
    evaluation: Evaluation | None = None
    """Loss on held-out documents, by source; none where absent."""
    checkpoint: Checkpoint
    """Where the run lives."""
    report: ReportOptions = ReportOptions()
    """The page that shows how the run goes."""
    wandb: Wandb | None = None
    """Report to Weights & Biases besides; not at all where absent."""
    fault_tolerance: FaultTolerance = FaultTolerance()
    """Which faults a run survives."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1234
    """Initial weights and the order of documents follow from it."""

    def find_tokenizer(self) -> Path | None:
        """Where the tokenizer for checkpoints and exports lies: as named, with the model, or with its weights."""
        named = [Path(self.tokenizer)] if self.tokenizer is not None else []
        likely = [Path(path) for path in (self.model, self.init_from) if path is not None]
        likely += [found / "hf" for path in likely if (found := find_checkpoint(path)) is not None]
        return next(iter([*named, *(path for path in likely if (path / "tokenizer.json").is_file())]), None)

    def stage(self, index: int) -> "StageRecipe":
        """A stage with everything that it takes over from the recipe."""
        stage = self.data.stages[index]
        return StageRecipe(
            name=stage.name,
            blend=stage.blend,
            epochs=stage.epochs,
            train_iters=stage.train_iters,
            train_tokens=stage.train_tokens,
            plan=stage.plan,
            loss_mask=stage.loss_mask,
            seq_length=stage.seq_length or self.data.seq_length,
            long_documents=stage.long_documents or self.data.long_documents,
            batch=stage.batch or self.batch,
            megatron=MegatronOptions.of({**self.megatron, **stage.megatron}),
            objective=stage.objective or self.objective,
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
                    f"stage {stage.name} has another {' or '.join(OPTIMIZER_KIND)} than the first: Megatron's saved "
                    "optimizer cannot be taken up so; set them for all stages"
                )
            self.stage(index).objective.check_recipe(self.init_from)
            self._check_report(index)
            if stage.plan and self.evaluation:
                raise InputError(
                    f"stage {stage.name} has a plan, which packs every document, and evaluation.held_out_documents "
                    "keeps some back: leave one of them out"
                )
        return self

    def _check_report(self, index: int) -> None:
        """Raise InputError where a stage's layout cannot answer prompts."""
        stage = self.stage(index)
        if self.report.prompts and (stage.layout.context > 1 or stage.megatron.fp8):
            raise InputError(
                f"report.prompts is {self.report.prompts}, and stage {stage.name} has context_parallel_size "
                f"{stage.layout.context} and fp8 {stage.megatron.fp8 or 'null'}: prompts can be answered with neither; "
                "set report.prompts to 0"
            )

    def check_weights(self) -> None:
        """Raise InputError unless every directory of weights that is named is there, and of this model."""
        model = load_model_config(self.model)
        if self.init_from is not None:
            check_source_of_weights(self.init_from, self.model, model)
        for stage in (self.stage(index) for index in range(len(self.data.stages))):
            for key, directory in stage.objective.sources_of_weights().items():
                check_source_of_weights(directory, self.model, model, key)


def check_source_of_weights(directory: str, name: str, model: ModelConfig, what: str = "init_from") -> None:
    """Raise InputError unless a path holds weights of the same architecture as `model`, as far as it says so itself.

    `what`: where the path was given.
    """
    checkpoint = find_checkpoint(Path(directory))
    config = Path(directory) if checkpoint is None else checkpoint / "hf"
    has_config = (config / "config.json").is_file()
    if checkpoint is None and not has_config:
        without = ", or init_from=null to see what would run without them" if what == "init_from" else ""
        raise InputError(
            f"{what} {directory} has no config.json and no torch_dist checkpoint: give a directory with "
            f"weights{without}"
        )
    if has_config and load_model_config(str(config)).architecture() != model.architecture():
        raise InputError(f"{what} {directory} has another architecture than model {name}: give the same for both")
    if checkpoint is None and not any((Path(directory) / file).is_file() for file in WEIGHT_FILES):
        raise InputError(f"{what} {directory} has no {' and no '.join(WEIGHT_FILES)}")
