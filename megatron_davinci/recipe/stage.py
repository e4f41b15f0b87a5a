"""One stage of a recipe with everything that it takes over from the recipe, and whether its sizes fit. Torch-free."""

from dataclasses import dataclass
from typing import Any

from data_prep import InputError
from megatron_davinci.models.config import ModelConfig
from megatron_davinci.planning.alignment import FP8_MULTIPLES, Alignment, alignment
from megatron_davinci.recipe.low_precision import check_fp8, fp8_recipe_of
from megatron_davinci.recipe.sections import Batch, Blend, LongDocuments, Objective
from megatron_davinci.rmt.options import Reinforced

_MOST_RANKS = 64  # of those that share one thing: what is proposed
OPTIMIZER_KIND = {"use_distributed_optimizer": False, "bf16": False}


@dataclass(frozen=True)
class StageRecipe:
    """One stage, resolved: nothing is left to look up in the recipe."""

    name: str
    blend: list[Blend]
    epochs: int
    plan: str | None
    loss_mask: bool
    seq_length: int
    long_documents: LongDocuments
    batch: Batch
    megatron: dict[str, Any]
    objective: Objective

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
        return {name: self.megatron.get(name, default) for name, default in OPTIMIZER_KIND.items()}

    @property
    def alignment(self) -> Alignment:
        """What multiples documents and rows are of."""
        return alignment(
            self.tensor_parallel_size,
            self.context_parallel_size,
            bool(self.megatron.get("sequence_parallel")),
            fp8_recipe_of(self.megatron),
        )

    @property
    def document_alignment(self) -> int:
        """Each document takes room up to a multiple of this: context parallelism cuts it into 2 * CP equal chunks."""
        return self.alignment.document


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
    ):
        require_divisor(what, value, by, divisor)
    require_multiple("seq_length", stage.seq_length, "context_parallel_size", min(cp, 1))
    check_fp8(stage.megatron, model, tp)
    if model.padded_vocab_size // tp * (tp - 1) >= model.vocab_size:
        raise InputError(f"vocab_size is {model.vocab_size}: {by_tp} = {tp} leaves a rank nothing but padding")
    if stage.megatron.get("recompute_method") == "uniform":
        require_divisor(
            "the number of layers of a pipeline chunk",
            model.num_layers // (pp * (chunks or 1)),
            "recompute_num_layers",
            stage.megatron.get("recompute_num_layers") or 1,
        )
    if stage.megatron.get("overlap_param_gather") and not stage.megatron.get("use_distributed_optimizer"):
        raise InputError("overlap_param_gather has nothing to gather without use_distributed_optimizer: set both")
    check_rows(stage)
    if stage.batch.unit == "tokens":
        require_multiple("batch.global_size", stage.batch.global_size, "seq_length", stage.seq_length)
    if stage.plan and stage.batch.unit == "samples":
        raise InputError(
            f"stage {stage.name} has a plan, but batches of samples are packed inside the batch: leave plan out, or "
            "set batch.unit to sequences"
        )
    if isinstance(stage.objective, Reinforced):
        check_reinforcement(stage)


def check_rows(stage: StageRecipe) -> None:
    """Raise InputError where packed rows cannot be dealt out over the ranks of a replica, or be multiplied in FP8."""
    parts = ["2 x context_parallel_size"] if stage.context_parallel_size > 1 else []
    if stage.megatron.get("sequence_parallel"):
        parts.append("tensor_model_parallel_size of sequence_parallel")
    if (recipe := fp8_recipe_of(stage.megatron)) is not None:
        parts.append(f"{FP8_MULTIPLES[recipe]} of fp8_recipe {recipe}")
    require_multiple("seq_length", stage.seq_length, f"the alignment of rows ({', '.join(parts)})", stage.alignment.row)


def check_reinforcement(stage: StageRecipe) -> None:
    """Raise InputError where a stage of reinforcement mid-training is set up as its trees cannot be."""
    where = f"stage {stage.name}: objective {stage.objective.kind}"
    if stage.context_parallel_size > 1:
        raise InputError(
            f"{where} with context_parallel_size {stage.context_parallel_size}: the rows of "
            "a tree cannot be dealt out so; set it to 1 for this stage"
        )
    if stage.megatron.get("fp8"):
        raise InputError(
            f"{where} with fp8: the rows of trees and of answers are no multiples of what FP8 takes; set the stage's "
            "megatron.fp8 to null"
        )
    if stage.long_documents == "split":
        raise InputError(f"{where} needs whole documents, long_documents is split: set the stage's to error or drop")
    if stage.batch.unit != "samples" or stage.plan is not None:
        raise InputError(
            f"{where} takes documents with what was answered about them, which no plan "
            "packs: set batch.unit to samples, and no plan"
        )


def require_divisor(what: str, value: int, by: str, divisor: int) -> None:
    """Raise InputError unless `divisor`, the recipe's, divides `value`, the model's."""
    if divisor < 1:
        raise InputError(f"{by} is {divisor}; it must be at least 1")
    if value % divisor:
        divisors = ", ".join(str(number) for number in range(1, min(value, _MOST_RANKS) + 1) if value % number == 0)
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
