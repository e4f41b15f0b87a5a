"""Recipes as files: YAML, overrides from the command line, and one sentence for the first thing that is wrong."""

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from data_prep import InputError
from data_prep.io.errors import DAMAGE, describe
from data_prep.io.files import read_regular_file
from megatron_davinci.config.messages import sentence
from megatron_davinci.config.recipe import Recipe

_MOST_BYTES, _MOST_NODES, _MOST_LEVELS = 16 << 20, 1_000_000, 100


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 8e-5 as text; a learning rate must be a number. A key twice would lose the first value."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Called for each mapping as it is written. Raises InputError for a key that it holds twice."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (before := lines.get(key.value)) is not None:
                raise InputError(
                    f"the recipe holds the key '{key.value}' twice, in lines {before} and {key.start_mark.line + 1}: "
                    "leave one out"
                )
            lines[key.value] = key.start_mark.line + 1
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def load_recipe(path: Path, overrides: list[str], with_weights: bool = True) -> Recipe:
    """Read and check a recipe; `overrides` are key=value with dots between levels. Raises InputError.

    `with_weights`: the directories of weights that it names must be here.
    """
    if path.is_dir():
        raise InputError(f"recipe {path} cannot be read: Is a directory")
    values = _read_yaml(read_regular_file(path, _MOST_BYTES), f"recipe {path}")
    if not isinstance(values, dict):
        raise InputError(f"recipe {path} holds no keys")
    for override in overrides:
        _apply_override(values, override)
    return parse_recipe(values, with_weights)


def parse_recipe(values: dict[str, Any], with_weights: bool = True) -> Recipe:
    """Check the values of a recipe. Raises InputError with one sentence on the first thing that is wrong."""
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise InputError(sentence(error, Recipe)) from None
    if with_weights:
        recipe.check_weights()
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """YAML of a recipe with every default written out; load_recipe reads it back."""
    return yaml.safe_dump(recipe.model_dump(), sort_keys=False)


def _read_yaml(data: bytes, what: str) -> Any:
    """Raises InputError for what is no YAML, or no recipe's: nested deeply, or by names that stand for each other."""
    try:
        node = yaml.compose(data, _Loader)
        _check_nodes(node, what)
        return yaml.load(data, _Loader)  # noqa: S506  # a SafeLoader
    except yaml.YAMLError as error:
        raise InputError(f"{what} is not YAML: {' '.join(str(error).split())}") from None
    except DAMAGE as error:
        raise InputError(f"{what} is not YAML: {describe(error)}") from None


def _check_nodes(node: Any, what: str) -> None:
    """Raise InputError for a document that unfolds to more than any recipe's, before it is unfolded."""
    pending, count = [(node, 0)], 0
    while pending:
        at, depth = pending.pop()
        count += 1
        if count > _MOST_NODES or depth > _MOST_LEVELS:
            raise InputError(f"{what} is nested too deeply, or names its own parts too often: write it out")
        if isinstance(at, yaml.SequenceNode):
            pending += [(each, depth + 1) for each in at.value]
        elif isinstance(at, yaml.MappingNode):
            pending += [(each, depth + 1) for pair in at.value for each in pair]


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
    value = _read_yaml(text.encode(errors="surrogateescape"), f"override '{override}': {text!r}")
    *parents, last = path.split(".")
    target: Any = values
    for key in parents:
        if isinstance(target, list) and key.isdigit() and int(key) < len(target):
            target = target[int(key)]
        elif isinstance(target, dict):
            target = target.setdefault(key, {})
        else:
            raise InputError(f"override '{override}': the recipe has no section {key} there")
    if not isinstance(target, dict):
        raise InputError(f"override '{override}' names no key of a section")
    target[last] = value
