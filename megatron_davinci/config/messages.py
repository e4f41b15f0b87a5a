"""One sentence for the first thing that is wrong in a recipe. Torch-free."""

from collections.abc import Sequence
from typing import Any, get_args

from pydantic import ValidationError

from data_prep.io.registry import nearest
from megatron_davinci.config.renamed import new_name
from megatron_davinci.config.section import Section

KeyPath = Sequence[int | str]


class SectionError(ValueError):
    """What is wrong in a section whose class depends on its own values: pydantic itself has not seen it."""

    def __init__(self, error: ValidationError, section: type[Section]) -> None:
        super().__init__(str(error))
        self.error, self.section = error, section


def sentence(error: ValidationError, section: type[Section], where: KeyPath = ()) -> str:
    """The first mistake in a `section` that lies at `where` in the recipe, with the key, the value and the rule."""
    first = error.errors()[0]
    path = [*where, *first["loc"]]
    inner = first.get("ctx", {}).get("error")
    if isinstance(inner, SectionError):
        return sentence(inner.error, inner.section, path)
    key = ".".join(map(str, path))
    if first["type"] == "extra_forbidden":
        if (new := new_name(path)) is not None:
            return f"recipe key '{key}' is now called '{new}': rename it"
        return f"unknown recipe key '{key}'{nearest(str(path[-1]), _known_keys(section, first['loc'][:-1]))}"
    if first["type"] == "missing":
        return f"the recipe lacks '{key}'"
    message = first["msg"].removeprefix("Value error, ")
    return f"{key} is {first['input']!r}: {message}" if key else message


def _known_keys(section: type[Section], path: KeyPath) -> list[str]:
    """Keys of the section at `path` inside another one."""
    sections = [section]
    for key in (part for part in path if isinstance(part, str)):
        fields = [each.model_fields[key] for each in sections if key in each.model_fields]
        sections = _sections_in(fields[0].annotation) if fields else sections
    return [name for each in sections for name in each.model_fields]


def _sections_in(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections_in(part)]
