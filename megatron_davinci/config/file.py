"""Recipes as files: YAML, overrides from the command line, and one sentence for the first thing that is wrong."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from data_prep import InputError
from data_prep.io.files import read_regular_file
from data_prep.io.yaml_text import MOST_YAML_BYTES, read_yaml
from megatron_davinci.config.messages import sentence
from megatron_davinci.config.recipe import Recipe
from megatron_davinci.config.section import NEEDS_WEIGHTS, RECIPE_FOLDER
from megatron_davinci.weights.paths import latest_checkpoint


def load_recipe(path: Path, overrides: list[str], with_weights: bool = True) -> Recipe:
    """Read and check a recipe, or that of a run's directory; `overrides` are key=value with dots between levels.

    Raises InputError.

    `with_weights`: the directories of weights that it names must be here.
    """
    file = _recipe_file(path)
    values = read_yaml(read_regular_file(file, MOST_YAML_BYTES), f"recipe {file}")
    if not isinstance(values, dict):
        held = "nothing" if values is None else f"a {type(values).__name__}"
        raise InputError(f"recipe {file} holds {held}: write `key: value` lines, as in examples/")
    if file != path and isinstance(values.get("checkpoint"), dict):
        values["checkpoint"]["dir"] = str(path)  # the run may have been moved
    for override in overrides:
        _apply_override(values, override)
    token = RECIPE_FOLDER.set(path.parent if file == path else None)  # a run's has found its inputs already
    try:
        return parse_recipe(values, with_weights)
    finally:
        RECIPE_FOLDER.reset(token)


def _recipe_file(path: Path) -> Path:
    """The file itself or, of a run's directory, the recipe of its latest checkpoint. Raises InputError."""
    if not path.is_dir():
        return path
    latest = latest_checkpoint(path)
    if latest is not None and (latest / "recipe.yaml").is_file():
        return latest / "recipe.yaml"
    recipes = sorted(str(each) for each in path.glob("*.yaml"))
    hint = f"give {' or '.join(recipes[:3])}" if recipes else "give a recipe file, or the directory of a run"
    raise InputError(f"{path} is a directory without a checkpoint: {hint}")


def parse_recipe(values: dict[str, Any], with_weights: bool = True) -> Recipe:
    """Check the values of a recipe. Raises InputError with one sentence on the first thing that is wrong."""
    token = NEEDS_WEIGHTS.set(with_weights)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise InputError(sentence(error, Recipe)) from None
    finally:
        NEEDS_WEIGHTS.reset(token)
    if with_weights:
        recipe.check_weights()
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """YAML of a recipe with every default written out; load_recipe reads it back."""
    return yaml.safe_dump(recipe.model_dump(), sort_keys=False)


def parse_overrides(overrides: list[str]) -> dict[str, Any]:
    """The values of key=value pairs, with dots between levels. Raises InputError."""
    values: dict[str, Any] = {}
    for override in overrides:
        _apply_override(values, override)
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals:
        raise InputError(f"override '{override}' is not key=value")
    value = read_yaml(text.encode(errors="surrogateescape"), f"override '{override}': {text!r}")
    *parents, last = path.split(".")
    target: Any = values
    for key in parents:
        if isinstance(target, list) and key.isdigit() and int(key) < len(target):
            target = target[int(key)]
        elif isinstance(target, dict):
            target = target.setdefault(key, {})
        else:
            count = len(target) if isinstance(target, list) else 0
            there = f"number {key}; it has {count}, from 0 on" if count else f"{key} there"
            raise InputError(f"override '{override}': the recipe has no section {there}")
    if not isinstance(target, dict):
        raise InputError(f"override '{override}' names no key of a section")
    target[last] = value
