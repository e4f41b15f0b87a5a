"""How a model is split over ranks, and the options of Megatron that depend on it, as frozen types. Torch-free."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass(frozen=True)
class ParallelLayout:
    """Sizes of Megatron's parallel groups. `virtual_pipeline`: chunks of layers per pipeline rank, None without
    interleaving. `first_layers`, `last_layers`: of the first and the last pipeline rank, which have the embedding and
    the output layer besides; None for as many as the others."""

    tensor: int = 1
    pipeline: int = 1
    virtual_pipeline: int | None = None
    context: int = 1
    sequence_parallel: bool = False
    first_layers: int | None = None
    last_layers: int | None = None

    @property
    def ranks_per_replica(self) -> int:
        """Ranks that hold one copy of the model; more are data-parallel."""
        return self.tensor * self.pipeline * self.context

    @property
    def model_chunks(self) -> int:
        """Chunks of layers on each pipeline rank."""
        return self.virtual_pipeline or 1

    @property
    def microbatch_multiple(self) -> int:
        """The number of micro-batches is a multiple of this: interleaved pipelines need one of their ranks."""
        return self.pipeline if self.virtual_pipeline else 1

    def layers_by_rank(self, num_layers: int) -> list[int]:
        """Layers of each pipeline rank, of a number that `check_stage` has found to be divisible so."""
        given = {0: self.first_layers, self.pipeline - 1: self.last_layers}
        fixed = {rank: layers for rank, layers in given.items() if layers is not None}
        others = self.pipeline - len(fixed)
        each = (num_layers - sum(fixed.values())) // others if others else 0
        return [fixed.get(rank, each) for rank in range(self.pipeline)]


_NO_DEFAULT = object()
FIELD_DEFAULTS = {
    "tensor_model_parallel_size": 1,
    "pipeline_model_parallel_size": 1,
    "virtual_pipeline_model_parallel_size": None,
    "context_parallel_size": 1,
    "sequence_parallel": False,
    "num_layers_in_first_pipeline_stage": None,
    "num_layers_in_last_pipeline_stage": None,
    "transformer_impl": "auto",
    "attention_backend": "auto",
}
"""A default that is said and one that is left out are the same."""


@dataclass(frozen=True)
class MegatronOptions:
    """The recipe's `megatron` section, parsed once: `given` as it is there, without what is the default anyway; the
    rest with Megatron's defaults."""

    given: Mapping[str, Any] = field(hash=False)
    layout: ParallelLayout
    bf16: bool
    fp8: str | None
    fp8_recipe: str
    first_last_layers_bf16: bool
    use_distributed_optimizer: bool
    overlap_grad_reduce: bool
    overlap_param_gather: bool
    grad_reduce_in_fp32: bool
    deterministic_mode: bool
    transformer_impl: str
    recompute_granularity: str | None
    recompute_modules: tuple[str, ...]
    recompute_method: str | None
    recompute_num_layers: int | None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Parse fields that `check_megatron_fields` has accepted. Gradients add up in fp32 unless the recipe says
        otherwise, which is not Megatron's default."""
        given = {name: value for name, value in given.items() if value != FIELD_DEFAULTS.get(name, _NO_DEFAULT)}
        layout = ParallelLayout(
            tensor=given.get("tensor_model_parallel_size", 1),
            pipeline=given.get("pipeline_model_parallel_size", 1),
            virtual_pipeline=given.get("virtual_pipeline_model_parallel_size"),
            context=given.get("context_parallel_size", 1),
            sequence_parallel=bool(given.get("sequence_parallel")),
            first_layers=given.get("num_layers_in_first_pipeline_stage"),
            last_layers=given.get("num_layers_in_last_pipeline_stage"),
        )
        return cls(
            given=given,
            layout=layout,
            bf16=bool(given.get("bf16")),
            fp8=given.get("fp8") or None,
            fp8_recipe=given.get("fp8_recipe", "delayed"),
            first_last_layers_bf16=bool(given.get("first_last_layers_bf16")),
            use_distributed_optimizer=bool(given.get("use_distributed_optimizer")),
            overlap_grad_reduce=bool(given.get("overlap_grad_reduce")),
            overlap_param_gather=bool(given.get("overlap_param_gather")),
            grad_reduce_in_fp32=given.get("grad_reduce_in_fp32", True) is not False,
            deterministic_mode=bool(given.get("deterministic_mode")),
            transformer_impl=given.get("transformer_impl", "auto"),
            recompute_granularity=given.get("recompute_granularity"),
            recompute_modules=tuple(given.get("recompute_modules") or ("core_attn",)),  # Megatron's default
            recompute_method=given.get("recompute_method"),
            recompute_num_layers=given.get("recompute_num_layers"),
        )

    @property
    def scaling(self) -> str | None:
        """How FP8 is scaled, None without FP8; Megatron's default is delayed scaling."""
        return self.fp8_recipe if self.fp8 else None
