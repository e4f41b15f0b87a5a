"""Sections whose class is named in them: the objective by its kind, the rollouts by their engine. Torch-free."""

from typing import Any

from pydantic import ValidationError

from data_prep import InputError
from megatron_davinci.config.messages import SectionError
from megatron_davinci.config.section import Section


def options_of(registry: Any, key: str, base: type[Section], value: Any) -> Any:
    """The section that `value`'s own class, named under `key`, makes of it."""
    if isinstance(value, base) or not isinstance(value, dict) or not isinstance(value.get(key), str):
        return value
    section = registry.get(value[key])
    lacks = [name for name in section.required if name not in section.model_fields and not hasattr(section, name)]
    if lacks:
        raise InputError(f"{value[key]} lacks {', '.join(lacks)}, which every subclass of {base.__name__} sets: add it")
    return parse_section(section, value)


def parse_section(section: type[Section], value: dict[str, Any]) -> Section:
    """A section from a dict; what does not fit is a SectionError that names the section."""
    try:
        return section.model_validate(value)
    except ValidationError as error:
        raise SectionError(error, section) from None
