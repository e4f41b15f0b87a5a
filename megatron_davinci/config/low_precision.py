"""FP8 in a stage: whether Transformer Engine's kernels can take the shards of its layout. Torch-free.

The linear layers of the transformer compute in it. Attention, norms, embeddings and the output layer stay in bf16, with
first_last_layers_bf16 the first and last layers too.
"""

from data_prep import InputError
from megatron_davinci.models.alignment import FP8_MULTIPLES
from megatron_davinci.models.config import ModelConfig
from megatron_davinci.models.parallel_layout import MegatronOptions


def check_fp8(megatron: MegatronOptions, model: ModelConfig) -> None:
    """Raise InputError where FP8 is asked for and a layer's shard on a rank cannot be multiplied so."""
    recipe, tensor = megatron.scaling, megatron.layout.tensor
    if recipe is None:
        others = sorted(name for name in megatron.given if name.startswith("fp8_"))
        if others and "fp8" not in megatron.given:  # null leaves it out of a recipe that has it
            raise InputError(f"megatron.{others[0]} means nothing without megatron.fp8: set it to hybrid")
        return
    if not megatron.bf16:
        raise InputError(f"megatron.fp8 is {megatron.fp8} without bf16, in which the rest computes: set bf16 too")
    if recipe == "delayed" and megatron.first_last_layers_bf16:
        raise InputError(
            "megatron.fp8_recipe is delayed, whose scales are set once a step for all layers alike: with "
            "first_last_layers_bf16 set it to tensorwise"
        )
    multiple = FP8_MULTIPLES[recipe]
    for what, size, whole in _shard_sizes(model, tensor):
        if size % multiple:
            raise InputError(
                f"megatron.fp8_recipe is {recipe}, which needs shards that are multiples of {multiple}, and {what} "
                f"{whole} over tensor_model_parallel_size {tensor} is {size}: {_remedy(recipe, model, tensor)}"
            )


def _shard_sizes(model: ModelConfig, tensor: int) -> list[tuple[str, int, int]]:
    """(name, size on a rank, size of the whole) of both sides that each linear layer's weight has on a rank."""
    found = []
    for layer in model.linear_layers:
        on_rank, whole = layer.shard(tensor), (layer.in_features, layer.out_features)
        names = (f"{layer.name}'s in_features", f"{layer.name}'s out_features")
        found += list(zip(names, on_rank, whole, strict=True))
    return found


def _remedy(recipe: str, model: ModelConfig, tensor: int) -> str:
    def fits(other: str, ranks: int) -> bool:
        return all(size % FP8_MULTIPLES[other] == 0 for _, size, _ in _shard_sizes(model, ranks))

    if fits("tensorwise", tensor):
        return "set fp8_recipe to tensorwise"
    smaller = next((ranks for ranks in (8, 4, 2, 1) if ranks < tensor and fits(recipe, ranks)), None)
    return "leave fp8 out" if smaller is None else f"set tensor_model_parallel_size to {smaller}, or leave fp8 out"
