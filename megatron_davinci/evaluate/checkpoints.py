"""The checkpoints that a run has left, each on its held-out documents."""

from collections.abc import Mapping
from pathlib import Path

from data_prep import InputError
from data_prep.io.files import refuse_occupied
from megatron_davinci.config import Recipe
from megatron_davinci.config.processes import check_number_of_ranks
from megatron_davinci.core.build import transformer_config
from megatron_davinci.core.build_trainer import build_trainer
from megatron_davinci.core.groups import is_main_rank, model_parallel, sync_errors, world
from megatron_davinci.core.initialize import load_weights
from megatron_davinci.core.optimizer import unwrap
from megatron_davinci.core.transformer_impl import check_transformer_impl
from megatron_davinci.data.batches import RunBatches
from megatron_davinci.evaluate.curves import Curve, write_curves
from megatron_davinci.models.config import load_model_config
from megatron_davinci.train.held_out_loss import held_out_losses
from megatron_davinci.weights.checkpoint_files import check_checkpoint
from megatron_davinci.weights.paths import checkpoints_of, step_of


def evaluate_checkpoints(recipe: Recipe, stage_name: str | None, scores: Mapping[str, Curve], out: Path) -> str:
    """Every checkpoint of a run on the held-out documents of a stage, the last by default, and `scores` beside it.

    Writes OUT/results.json, table.md and curves.png; gives the table, on the main rank alone. Raises InputError.
    """
    refuse_occupied(out)
    if recipe.evaluation is None:
        raise InputError(
            "the recipe holds no documents out: set evaluation.held_out_documents as it was set in training"
        )
    names = [stage.name for stage in recipe.data.stages]
    if stage_name is not None and stage_name not in names:
        raise InputError(f"the recipe has no stage {stage_name}: it has {', '.join(names)}")
    index = len(names) - 1 if stage_name is None else names.index(stage_name)
    found = checkpoints_of(Path(recipe.checkpoint.dir))
    if not found:
        raise InputError(
            f"{recipe.checkpoint.dir} has no checkpoint: train first, and keep some (checkpoint.save_retain_interval)"
        )
    batches, model, stage = RunBatches(recipe), load_model_config(recipe.model), recipe.stage(index)
    for checkpoint in found:
        check_checkpoint(checkpoint)
    check_transformer_impl(stage.megatron, model, trees=False)
    transformer_config(model, stage.megatron)
    check_number_of_ranks(stage)
    curves: dict[str, dict[int, float]] = {}
    with world(), model_parallel(stage, recipe.seed) as device:
        trainer = build_trainer(recipe, stage, model, device, unset=True)
        for checkpoint in found:
            with sync_errors():
                load_weights(unwrap(trainer.chunks), checkpoint, recipe.model)
            for name, loss in held_out_losses(trainer, batches, index).items():
                curves.setdefault(f"loss on {name}", {})[step_of(checkpoint)] = loss
        return write_curves({**curves, **scores}, out) if is_main_rank() else ""
