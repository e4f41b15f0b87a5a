"""Recipes as files: YAML, overrides from the command line, and one sentence for the first thing that is wrong."""

import re
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from data_prep import InputError
from megatron_davinci.megatron_fields import nearest
from megatron_davinci.recipe.recipe import Recipe
from megatron_davinci.section import Section

# pydantic puts into the path of a key which of several sections it is in
_TAGS = ("ntp", "rmt", "grpo", "MegatronRollouts")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 8e-5 as text; a learning rate must be a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def load_recipe(path: Path, overrides: list[str], with_weights: bool = True) -> Recipe:
    """Read and check a recipe; `overrides` are key=value with dots between levels. Raises InputError.

    `with_weights`: the directories of weights that it names must be here.
    """
    try:
        values = yaml.load(path.read_bytes(), _Loader)  # noqa: S506  # a SafeLoader
    except OSError as error:
        raise InputError(f"recipe {path} cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise InputError(f"recipe {path} is not YAML: {' '.join(str(error).split())}") from None
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
        raise InputError(_sentence(error)) from None
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
    try:
        value = yaml.load(text, _Loader)  # noqa: S506  # a SafeLoader
    except yaml.YAMLError:
        raise InputError(f"override '{override}': {text!r} is not YAML") from None
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


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in _TAGS)
    if first["type"] == "extra_forbidden":
        return f"unknown recipe key '{where}'{nearest(str(first['loc'][-1]), _known_keys(first['loc'][:-1]))}"
    if first["type"] == "missing":
        return f"the recipe lacks '{where}'"
    message = first["msg"].removeprefix("Value error, ")
    return f"{where} is {first['input']!r}: {message}" if where else message


def _known_keys(path: tuple[int | str, ...]) -> list[str]:
    """Keys of the section at `path`, whose parts may be the tag of one of several kinds."""
    sections: list[type[Section]] = [Recipe]
    for key in (part for part in path if isinstance(part, str)):
        fields = [section.model_fields[key] for section in sections if key in section.model_fields]
        if fields:
            sections = _sections_in(fields[0].annotation)
        else:
            sections = [section for section in sections if key in _tags_of(section)]
    return [name for section in sections for name in section.model_fields]


def _tags_of(section: type[Section]) -> tuple[str, ...]:
    """What pydantic calls it where it is one of several: its name, or a kind that it declares."""
    kind = section.model_fields.get("kind")
    return (section.__name__, *(get_args(kind.annotation) if kind is not None else ()))


def _sections_in(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections_in(part)]
