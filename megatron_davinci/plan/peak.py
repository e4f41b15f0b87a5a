"""Does what a recipe's stages take at their peak fit in a GPU? Torch-free."""

from data_prep import InputError
from data_prep.io.arithmetic import ceil_div
from megatron_davinci.config import Recipe, StageRecipe
from megatron_davinci.models.config import ModelConfig, load_model_config
from megatron_davinci.models.memory import GIB
from megatron_davinci.plan.memory import MARGIN, RankMemory, fullest_rank
from megatron_davinci.plan.shapes import LayerShapes, PlannedLayout


def doubts_about_memory(recipe: Recipe, ranks: int | None, gibibytes: float, refuse: bool = True) -> list[str]:
    """Stages whose predicted peak, activations and all, is about as much as a GPU has: one sentence each.

    `ranks`: None for as many as can share the optimizer. Raises InputError where a peak is more than that by more than
    the prediction may be wrong, unless it shall `refuse` nothing.
    """
    model, doubts = load_model_config(recipe.model), []
    for stage in (recipe.stage(index) for index in range(len(recipe.data.stages))):
        peak = predicted_peak(stage, model, ranks or stage.layout.ranks_per_replica * _batch_units(stage))
        predicted = peak.total / GIB
        if predicted * (1 + MARGIN) <= gibibytes:
            continue
        most = sorted(peak.kinds.items(), key=lambda kind: -kind[1])[:3]
        said = (
            f"stage {stage.name} is predicted to take {predicted:.1f} GiB on pipeline rank {peak.rank} "
            f"({', '.join(f'{kind} {value / GIB:.1f}' for kind, value in most)}), and a GPU has {gibibytes:g}"
        )
        if predicted <= gibibytes * (1 + MARGIN):
            doubts.append(f"{said}; the prediction may be off by {MARGIN:.0%}: it may run out of memory")
        elif refuse:
            raise InputError(f"{said}: davinci plan shows layouts that fit; --gpu or --gpu-memory name larger GPUs")
        else:
            doubts.append(f"{said}: it will run out of memory there; davinci plan shows layouts that fit")
    return doubts


def _batch_units(stage: StageRecipe) -> int:
    """Documents or sequences of a global batch."""
    return stage.batch.global_batch_size // (stage.seq_length if stage.batch.unit == "tokens" else 1)


def predicted_peak(stage: StageRecipe, model: ModelConfig, ranks: int) -> RankMemory:
    """Bytes of the fullest rank where a micro-batch is as wide as it may be."""
    rows = stage.batch.micro_batch_size
    layout = PlannedLayout.of(stage.megatron, ranks, rows)
    micro_batches = max(1, ceil_div(_batch_units(stage), layout.replicas))
    return fullest_rank(LayerShapes.of(model), layout, stage.seq_length * rows, micro_batches)
