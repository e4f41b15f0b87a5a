"""Recipes: what a run is, in one YAML file. Torch-free."""

from megatron_davinci.config.file import dump_recipe, load_recipe, parse_overrides, parse_recipe
from megatron_davinci.config.recipe import WEIGHT_FILES, Recipe, check_source_of_weights
from megatron_davinci.config.sections import Batch, Schedule
from megatron_davinci.config.stage import StageRecipe

__all__ = [
    "WEIGHT_FILES",
    "Batch",
    "Recipe",
    "Schedule",
    "StageRecipe",
    "check_source_of_weights",
    "dump_recipe",
    "load_recipe",
    "parse_overrides",
    "parse_recipe",
]
