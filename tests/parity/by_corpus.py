"""What ranks run to compare the loss by corpus."""

from typing import Any

import torch

from megatron_davinci.config import parse_recipe
from megatron_davinci.core.build_trainer import build_trainer
from megatron_davinci.core.groups import model_parallel, world
from megatron_davinci.core.next_token import next_token_batch, pack_next_token_batch
from megatron_davinci.data.batches import RunBatches
from megatron_davinci.models.config import load_model_config


def measure(recipes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per recipe: the loss of the first batch, and what it reports by corpus."""
    found = []
    with world():
        for values in recipes:
            recipe = parse_recipe(values)
            with model_parallel(recipe.stage(0), seed=0) as device:
                found.append(_measure_one(recipe, device))
    return found


def measure_alone(values: dict[str, Any]) -> tuple[dict[str, float], dict[str, int]]:
    """The loss of the first batch's documents of each corpus, in batches of their own, and their labels."""
    recipe = parse_recipe(values)
    with world(), model_parallel(recipe.stage(0), seed=0) as device:
        stage = RunBatches(recipe).stages[0]
        trainer = build_trainer(recipe, stage.recipe, load_model_config(recipe.model), device)
        losses, labels = {}, {}
        for number, name in enumerate(stage.corpus_names):
            ours = [
                [span for span in unit if stage.documents.prefix_index(span.document) == number]
                for unit in stage.units(0)
            ]
            batch = pack_next_token_batch(stage.documents, ours, stage.rules, device)
            losses[name], labels[name] = trainer.gradients(batch)["loss"], batch.counts.labels
        return losses, labels


def _measure_one(recipe: Any, device: torch.device) -> dict[str, Any]:
    stage = RunBatches(recipe).stages[0]
    trainer = build_trainer(recipe, stage.recipe, load_model_config(recipe.model), device)
    batch = next_token_batch(stage, 0, device)
    sums = trainer.gradients(batch)
    return {"loss": sums["loss"], **batch.metrics(sums)}
