"""One stage of a recipe with everything that it takes over from the recipe, and whether its sizes fit. Torch-free."""

from dataclasses import dataclass
from typing import Any

from data_prep import InputError
from data_prep.corpus import LongDocuments
from megatron_davinci.config.low_precision import check_fp8
from megatron_davinci.config.objectives import ObjectiveOptions
from megatron_davinci.config.sections import Batch, Blend
from megatron_davinci.models.alignment import FP8_MULTIPLES, Alignment, alignment
from megatron_davinci.models.config import ModelConfig
from megatron_davinci.models.parallel_layout import MegatronOptions, ParallelLayout

_MAX_RANKS = 64  # of those that share one thing: what is proposed
OPTIMIZER_KIND = ("use_distributed_optimizer", "bf16")


@dataclass(frozen=True)
class StageRecipe:
    """One stage, resolved: nothing is left to look up in the recipe."""

    name: str
    blend: list[Blend]
    epochs: int
    train_iters: int | None
    train_tokens: int | None
    plan: str | None
    loss_mask: bool
    seq_length: int
    long_documents: LongDocuments
    batch: Batch
    megatron: MegatronOptions
    objective: ObjectiveOptions

    @property
    def layout(self) -> ParallelLayout:
        """How the model is split over ranks."""
        return self.megatron.layout

    @property
    def optimizer_kind(self) -> dict[str, Any]:
        """What a saved optimizer can be taken up by: all stages of a run agree on it."""
        return {name: getattr(self.megatron, name) for name in OPTIMIZER_KIND}

    @property
    def alignment(self) -> Alignment:
        """The multiples that documents and rows are of."""
        return alignment(self.layout, self.megatron.scaling)

    @property
    def document_alignment(self) -> int:
        """Each document takes room up to a multiple of this: context parallelism cuts it into 2 * CP equal chunks."""
        return self.alignment.document


def check_stage(stage: StageRecipe, model: ModelConfig) -> None:
    """Raise InputError where a size is no multiple of what it is divided by, naming the next valid value."""
    layout, megatron = stage.layout, stage.megatron
    tp, pp, cp, chunks = layout.tensor, layout.pipeline, layout.context, layout.virtual_pipeline
    if chunks is not None and (chunks < 2 or pp < 2):
        raise InputError(
            f"virtual_pipeline_model_parallel_size is {chunks} with pipeline_model_parallel_size {pp}: interleaving "
            "needs at least 2 of each; leave it out"
        )
    by_tp = "tensor_model_parallel_size"
    for what, value, by, divisor in (
        ("num_attention_heads", model.num_attention_heads, by_tp, tp),
        ("num_query_groups", model.num_query_groups, by_tp, tp),
        ("ffn_hidden_size", model.ffn_hidden_size, by_tp, tp),
        ("the padded vocabulary", model.padded_vocab_size, by_tp, tp),
    ):
        require_divisor(what, value, by, divisor)
    _check_pipeline(layout, model.num_layers)
    if cp < 1:
        raise InputError(f"context_parallel_size is {cp}; it must be at least 1")
    check_fp8(megatron, model)
    if model.padded_vocab_size // tp * (tp - 1) >= model.vocab_size:
        raise InputError(f"vocab_size is {model.vocab_size}: {by_tp} = {tp} leaves a rank nothing but padding")
    if megatron.recompute_method == "uniform":
        for layers in sorted(set(layout.layers_by_rank(model.num_layers))):
            require_divisor(
                "the number of layers of a pipeline chunk",
                layers // layout.model_chunks,
                "recompute_num_layers",
                megatron.recompute_num_layers or 1,
            )
    if megatron.overlap_param_gather and not megatron.use_distributed_optimizer:
        raise InputError("overlap_param_gather has nothing to gather without use_distributed_optimizer: set both")
    if model.rope_scaling is not None and model.rope_scaling.rope_type == "dynamic":
        longest = model.max_position_embeddings
        if stage.seq_length > longest:
            raise InputError(
                f"seq_length is {stage.seq_length}, and beyond max_position_embeddings, {longest}, the model's RoPE "
                f"follows the longest text it has seen (dynamic): set seq_length to {longest}, or give the model yarn"
            )
    check_rows(stage)
    if stage.batch.unit == "tokens":
        require_multiple("batch.global_batch_size", stage.batch.global_batch_size, "seq_length", stage.seq_length)
    if stage.plan and stage.batch.unit == "samples":
        raise InputError(
            f"stage {stage.name} has a plan, but batches of samples are packed inside the batch: leave plan out, or "
            "set batch.unit to sequences"
        )
    stage.objective.check_stage(stage)


def _check_pipeline(layout: ParallelLayout, num_layers: int) -> None:
    """Raise InputError unless the layers can be shared out over pipeline ranks and their chunks."""
    chunks = layout.model_chunks
    given = {
        "num_layers_in_first_pipeline_stage": layout.first_layers,
        "num_layers_in_last_pipeline_stage": layout.last_layers,
    }
    fixed = {name: layers for name, layers in given.items() if layers is not None}
    if not fixed:
        by = "pipeline_model_parallel_size" + (" x virtual_pipeline_model_parallel_size" if chunks > 1 else "")
        require_divisor("num_layers", num_layers, by, layout.pipeline * chunks)
        return
    if layout.pipeline < 2:
        raise InputError(f"{next(iter(fixed))} is set with pipeline_model_parallel_size 1: leave it out")
    for name, layers in fixed.items():
        if layers < chunks or layers % chunks:
            raise InputError(
                f"{name} is {layers}; with {chunks} model chunk(s) a pipeline rank it must be a multiple of {chunks}"
            )
    left, others = num_layers - sum(fixed.values()), layout.pipeline - len(fixed)
    if left != 0 if others == 0 else left <= 0 or left % (others * chunks):
        said = " and ".join(f"{name} {layers}" for name, layers in fixed.items())
        wanted = f"a multiple of {others * chunks}" if others else "none"
        raise InputError(
            f"{said} leave {left} of {num_layers} layers to the other {others} pipeline rank(s) of {chunks} model "
            f"chunk(s); it must be {wanted}"
        )


def check_rows(stage: StageRecipe) -> None:
    """Raise InputError where packed rows cannot be shared out over the ranks of a replica, or be multiplied in FP8."""
    parts = ["2 x context_parallel_size"] if stage.layout.context > 1 else []
    if stage.layout.sequence_parallel:
        parts.append("tensor_model_parallel_size of sequence_parallel")
    if (recipe := stage.megatron.scaling) is not None:
        parts.append(f"{FP8_MULTIPLES[recipe]} of fp8_recipe {recipe}")
    require_multiple("seq_length", stage.seq_length, f"the alignment of rows ({', '.join(parts)})", stage.alignment.row)


def require_divisor(what: str, value: int, by: str, divisor: int) -> None:
    """Raise InputError unless `divisor`, the recipe's, divides `value`, the model's."""
    if divisor < 1:
        raise InputError(f"{by} is {divisor}; it must be at least 1")
    if value % divisor:
        divisors = ", ".join(str(number) for number in range(1, min(value, _MAX_RANKS) + 1) if value % number == 0)
        raise InputError(f"{what} is {value}, which {by} = {divisor} does not divide: {divisors} do")


def require_multiple(what: str, value: int, by: str, divisor: int) -> None:
    """Raise InputError unless `value` is a multiple of `divisor`."""
    if divisor < 1:
        raise InputError(f"{by} is {divisor}; it must be at least 1")
    if value % divisor:
        following = (value // divisor + 1) * divisor
        raise InputError(
            f"{what} is {value}, which {by} = {divisor} does not divide: the next valid value is {following}"
        )
