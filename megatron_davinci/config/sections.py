"""The sections of a recipe, each field with its explanation beneath."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from data_prep.corpus import LongDocuments
from megatron_davinci.config.objectives import OptionalObjectiveSection
from megatron_davinci.config.section import CorpusPath, InputPath, PathText, Positive, Section


class Blend(Section):
    corpus: CorpusPath
    """PREFIX of PREFIX.bin, PREFIX.idx and PREFIX.manifest.json."""
    repeat: Positive = 1
    """How often each document comes in one epoch; daVinci-Dev takes passing rollouts three times."""
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Share of the stage's tokens that come from this corpus, as a part of all weights, however often that repeats it;
    in place of `repeat`. All corpora of a blend have one, or none, and the stage has train_iters or train_tokens."""


class Batch(Section):
    global_batch_size: Positive
    """Units per optimizer step; daVinci-Dev: 1024 samples."""
    unit: Literal["samples", "sequences", "tokens"] = "samples"
    """samples: that many documents; sequences or tokens: out of a pack plan."""
    micro_batch_size: Positive = 1
    """A forward pass takes one row, of at most micro_batch_size x seq_length tokens."""


class Schedule(Section):
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Peak learning rate; daVinci-Dev: 8e-5, in fine-tuning 1e-5."""
    min_lr: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Where the decay would arrive one step after the last; at most lr."""
    lr_warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of all steps over which the learning rate rises linearly; daVinci-Dev: 0.05, in fine-tuning 0.1."""
    lr_warmup_iters: Annotated[int, Field(ge=0)] | None = None
    """The same as a number of steps, in place of the share."""
    lr_decay_style: Literal["cosine", "linear", "inverse-square-root", "WSD", "constant"] = "cosine"
    """What follows the warm-up; WSD: the peak, and a decay over the last steps alone."""
    lr_wsd_decay_fraction: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of all steps over which WSD decays."""
    lr_wsd_decay_iters: Positive | None = None
    """The same as a number of steps, in place of the share."""
    lr_wsd_decay_style: Literal["exponential", "linear", "cosine", "minus_sqrt"] = "exponential"
    """How WSD decays; exponential is Megatron's: 2 * 0.5^progress - 1."""

    @model_validator(mode="after")
    def _check_decay(self) -> "Schedule":
        fields = type(self).model_fields
        unused = [name for name in fields if "wsd" in name and getattr(self, name) != fields[name].default]
        if unused and self.lr_decay_style != "WSD":
            raise ValueError(f"{unused[0]} has nothing to do where lr_decay_style is {self.lr_decay_style}: leave it "
                             "out, or set lr_decay_style to WSD")  # fmt: skip
        fraction = fields["lr_wsd_decay_fraction"].default
        if self.lr_wsd_decay_iters is not None and self.lr_wsd_decay_fraction != fraction:
            raise ValueError(
                "lr_wsd_decay_fraction and lr_wsd_decay_iters both say how long the decay is: leave one out"
            )
        return self

    @model_validator(mode="after")
    def _check_min_lr(self) -> "Schedule":
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr} is above lr {self.lr}: a decay goes down")
        return self


class Stage(Section):
    name: Annotated[str, Field(min_length=1)]
    """For logs, the ledger and people; no two stages share one."""
    blend: Annotated[list[Blend], Field(min_length=1)]
    """The corpora of this stage, drawn together."""
    epochs: Positive = 1
    """How often the whole blend is seen."""
    train_iters: Positive | None = None
    """Optimizer steps of the stage, in place of `epochs`; the blend begins anew as often as needed."""
    train_tokens: Positive | None = None
    """Tokens of the stage, in place of `epochs`: it ends with the step that reaches them."""
    plan: InputPath | None = None
    """Pack plan for batches of sequences or tokens: from `davinci data pack` with the corpora in the blend's order,
    each as often as it is repeated; made on start, and kept beside the run, where absent."""
    loss_mask: bool = True
    """Predict only the tokens that a corpus's loss mask marks, where it has one; false: all, as in mid-training."""
    seq_length: Positive | None = None
    """In place of data.seq_length."""
    long_documents: LongDocuments | None = None
    """In place of data.long_documents."""
    batch: Batch | None = None
    """In place of the recipe's batch."""
    megatron: dict[str, Any] = Field(default_factory=dict)
    """Fields in place of the recipe's, or beside them. With another layout a stage begins in fresh processes."""
    objective: OptionalObjectiveSection = None
    """In place of the recipe's: reinforcement mid-training after mid-training, say."""
    schedule: Schedule | None = None
    """A learning rate of its own, over this stage's steps, from a fresh optimizer: fine-tuning after mid-training.
    Stages without one share the recipe's, over all their steps together."""

    @model_validator(mode="after")
    def _check_length(self) -> "Stage":
        lengths = {"epochs": self.epochs if self.epochs > 1 else None, "train_iters": self.train_iters,
                   "train_tokens": self.train_tokens}  # fmt: skip
        named = [name for name, value in lengths.items() if value is not None]
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} both say how long the stage is: leave one out")
        return self

    @model_validator(mode="after")
    def _check_weights(self) -> "Stage":
        weighted = [blend.weight is not None for blend in self.blend]
        if not any(weighted):
            return self
        if not all(weighted):
            raise ValueError(f"blend gives {sum(weighted)} of its {len(weighted)} corpora a weight: give each one, or "
                             "none")  # fmt: skip
        if any(blend.repeat > 1 for blend in self.blend):
            raise ValueError("blend has weight and repeat, which both say how much of a corpus comes: leave one out")
        if self.train_iters is None and self.train_tokens is None:
            raise ValueError("a blend by weight has no end of its own: set train_iters or train_tokens")
        if self.plan is not None:
            raise ValueError("a blend by weight packs each corpus by itself, and plan all of them together: leave it "
                             "out, and one is made on start")  # fmt: skip
        if len({blend.corpus for blend in self.blend}) < len(self.blend):
            raise ValueError("a blend by weight names a corpus twice: name it once, with the sum of both weights")
        return self


class Data(Section):
    seq_length: Positive
    """Tokens of one packed sequence."""
    stages: Annotated[list[Stage], Field(min_length=1)]
    """Run in this order."""
    long_documents: LongDocuments = "error"
    """What to do with a document longer than seq_length."""


class Evaluation(Section):
    eval_interval: Positive
    """Optimizer steps between evaluations; there is one after the last step too."""
    held_out_documents: Positive
    """Documents of each corpus that are never trained on; their loss is reported by corpus."""


class FaultTolerance(Section):
    max_skipped_steps: Annotated[int, Field(ge=0)] = 0
    """How many steps in a row may be skipped, their documents counted as seen, because the loss or a gradient is not
    finite; one more stops the run."""
    watchdog_timeout: Positive | None = 1800
    """Seconds that a rank may be silent, or the work of all stand still, before each writes its stacks to stacks/ of
    the run's directory, the rank that the others wait for is named, and the run ends with exit code 3; null: for
    ever."""


class Wandb(Section):
    project: Annotated[str, Field(min_length=1)]
    """Project of Weights & Biases; the account is what `wandb login` or WANDB_API_KEY says, WANDB_MODE=offline none."""
    name: str | None = None
    """The run's name there; where absent, that of checkpoint.dir."""


class ReportOptions(Section):
    at_checkpoints: bool = True
    """Write report.html into the run's directory at every checkpoint and at the end: see `davinci report`."""
    prompts: Annotated[int, Field(ge=0)] = 0
    """Prompts, the same all along, that the model answers at every checkpoint, to be read side by side."""
    max_tokens: Positive = 64
    """Longest of those answers."""


class Checkpoint(Section):
    dir: Annotated[PathText, Field(min_length=1)]
    """Directory of the run: step_NNNNNNN/, latest, metrics."""
    save_interval: Positive = 200
    """Optimizer steps between checkpoints; the last step is always saved."""
    save_total_limit: Positive = 3
    """How many of the newest checkpoints stay."""
    save_retain_interval: Positive | None = None
    """Those whose step is a multiple of this stay too."""
    async_save: bool = False
    """Write checkpoints while training goes on, in processes of their own, which take a copy of what changes."""
