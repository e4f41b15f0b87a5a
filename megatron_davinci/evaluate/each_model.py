"""Several models of one recipe, one after the other: each as what answers prompts, in the layout of a stage."""

import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch

from data_prep.io.registry import import_path
from megatron_davinci.config import Recipe, StageRecipe
from megatron_davinci.config.objectives import RolloutOptions
from megatron_davinci.config.processes import check_number_of_ranks
from megatron_davinci.config.recipe import check_source_of_weights
from megatron_davinci.config.rollouts import MegatronRollouts
from megatron_davinci.core.build_trainer import build_model
from megatron_davinci.core.groups import is_main_rank, model_parallel, world
from megatron_davinci.core.optimizer import in_precision
from megatron_davinci.core.transformer_impl import check_transformer_impl
from megatron_davinci.evaluate.model_names import is_address
from megatron_davinci.evaluate.served_model import ServedModel
from megatron_davinci.models.config import ModelConfig, load_model_config
from megatron_davinci.rl.engines.base import AnswersPrompts, Engine, EngineContext

Asked = TypeVar("Asked")


def check_models(recipe: Recipe, stage: StageRecipe, models: Mapping[str, str]) -> None:
    """Raise InputError where a directory holds other weights than the recipe's model's, or a layout does not fit."""
    model = load_model_config(recipe.model)
    for name, directory in models.items():
        if not is_address(directory):
            check_source_of_weights(directory, recipe.model, model, f"--model {name}")
    check_number_of_ranks(stage)
    check_transformer_impl(stage.megatron, model, trees=True)


def ask_each(
    recipe: Recipe,
    stage: StageRecipe,
    models: Mapping[str, str],
    stop_token_ids: frozenset[int],
    directory: Path,
    ask: Callable[[str, AnswersPrompts], Asked],
) -> dict[str, Asked] | None:
    """What `ask` makes of each model, by name; on the main rank alone. `directory`: for files of the engine's own."""
    model = load_model_config(recipe.model)
    found = {}
    with world():
        for name, named in models.items():
            with model_parallel(stage, recipe.seed) as device:
                engine: AnswersPrompts
                if is_address(named):
                    engine = ServedModel(named, stop_token_ids)
                else:
                    started = recipe.model_copy(update={"init_from": named})
                    engine = _engine_with(started, stage, model, device, stop_token_ids, directory)
                try:
                    found[name] = ask(name, engine)
                finally:
                    engine.close()
                del engine  # and its model, before the next one is built
                gc.collect()
        return found if is_main_rank() else None


def _engine_with(
    recipe: Recipe,
    stage: StageRecipe,
    model: ModelConfig,
    device: torch.device,
    stop_token_ids: frozenset[int],
    directory: Path,
) -> Engine:
    """The recipe's engine with the weights of its init_from."""
    assert isinstance(stage.objective, RolloutOptions)
    config, chunks = build_model(recipe, stage, model, device)
    rollouts = stage.objective.rollouts if stage.objective.has_engine else MegatronRollouts()
    engine_class: type[Engine] = import_path(rollouts.engine_class)
    engine = engine_class.of(
        EngineContext(in_precision(config, chunks), device, stage, model, rollouts, stop_token_ids, directory)
    )
    try:
        engine.update(0)
    except BaseException:
        engine.close()
        raise
    return engine
