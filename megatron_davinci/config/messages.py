"""One sentence for the first thing that is wrong in a recipe. Torch-free."""

from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import ValidationError

from data_prep.io.registry import nearest
from megatron_davinci.config.foreign_keys import foreign_place
from megatron_davinci.config.megatron_fields import USED_FIELDS
from megatron_davinci.config.renamed import new_name
from megatron_davinci.config.section import Section

KeyPath = Sequence[int | str]
_MOST_KEYS = 8  # of those that are unknown, in one message
_RULES = {
    **dict.fromkeys(("float_parsing", "float_type"), "it must be a number"),
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "it must be a whole number"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "it must be true or false"),
    **dict.fromkeys(("string_type",), "it must be text"),
    **dict.fromkeys(("list_type", "tuple_type"), "it must be a list: [one, two]"),
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "it must be a section, with keys below it"),
}


class SectionError(ValueError):
    """What is wrong in a section whose class depends on its own values: pydantic itself has not seen it."""

    def __init__(self, error: ValidationError, section: type[Section]) -> None:
        super().__init__(str(error))
        self.error, self.section = error, section


def sentence(error: ValidationError, section: type[Section], where: KeyPath = ()) -> str:
    """The first mistake in a `section` that lies at `where` in the recipe, with the key, the value and the rule."""
    unknown = [each for each in error.errors() if each["type"] == "extra_forbidden"]
    if unknown:
        return "; ".join(_unknown_key(each["loc"], section, where) for each in unknown[:_MOST_KEYS])
    missing = [".".join(map(str, [*where, *each["loc"]])) for each in error.errors() if each["type"] == "missing"]
    if missing:
        return f"the recipe lacks {', '.join(map(repr, missing))}: docs/recipe.md has every key"
    first = error.errors()[0]
    path = [*where, *first["loc"]]
    inner = first.get("ctx", {}).get("error")
    if isinstance(inner, SectionError):
        return sentence(inner.error, inner.section, path)
    key = ".".join(map(str, path))
    message = _RULES.get(first["type"], first["msg"].removeprefix("Value error, "))
    if isinstance(first["input"], dict):  # a whole section, which its rule names the keys of
        return f"{key}: {message}" if key else message
    return f"{key} is {first['input']!r}: {message}" if key else message


def _unknown_key(inside: KeyPath, section: type[Section], where: KeyPath) -> str:
    """What is said of a key at `inside` of a section that lies at `where`, and that nothing takes."""
    path = [*where, *inside]
    key, last = ".".join(map(str, path)), str(path[-1])
    if (new := new_name(path)) is not None:
        return f"recipe key '{key}' is now called '{new}': rename it"
    known = _known_keys(section, inside[:-1])
    if last.replace("-", "_") not in known and not nearest(last, known, 0.8):
        place = foreign_place(last, USED_FIELDS, [*_places(section)] if not where else [])
        if place is not None:
            return f"unknown recipe key '{key}'; did you mean {place}?"
    return f"unknown recipe key '{key}'{nearest(last, known)}"


def _places(section: type[Section]) -> Iterator[str]:
    """Keys of a section, and of the sections right below it, with dots."""
    for name, field in section.model_fields.items():
        yield name
        for below in _sections_in(field.annotation):
            yield from (f"{name}.{key}" for key in below.model_fields)


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
