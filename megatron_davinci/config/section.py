"""What every section of a recipe is: unknown keys are refused, values never change."""

import os
import re
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Positive = Annotated[int, Field(gt=0)]
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


def _expanded(path: str) -> str:
    """A path with the environment's variables in it put in. Raises ValueError for one that is not set."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise ValueError(f"the environment has no variable {name}: set it, or write the path out")
        return os.environ[name]

    return _VARIABLE.sub(value, path)


PathText = Annotated[str, AfterValidator(_expanded)]
"""A path, in which $NAME and ${NAME} stand for the environment's variables."""


class Section(BaseModel):
    """Strict and frozen; a string beneath a field explains it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_booleans(cls, value: Any, info: ValidationInfo) -> Any:
        """Python takes true for 1: a learning rate of `true` is a mistake."""
        field = cls.model_fields.get(info.field_name or "")
        if field is not None and _holds_boolean(value) and not _takes_boolean(field.annotation):
            raise ValueError("true and false are no values of it")
        return value


def _holds_boolean(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, list | tuple) and any(map(_holds_boolean, value)))


def _takes_boolean(annotation: Any) -> bool:
    if annotation in (bool, Any) or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return True  # a section says itself what is wrong
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        return any(isinstance(each, bool) for each in arguments)
    return any(map(_takes_boolean, arguments))
