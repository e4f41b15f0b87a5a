"""What every section of a recipe is: unknown keys are refused, values never change."""

import os
import re
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from data_prep.io.hub import HUB_CONFIG_FILES, HUB_MODEL_FILES, HUB_TOKENIZER_FILES, cached_path, found_path

Positive = Annotated[int, Field(gt=0)]
RECIPE_FOLDER: ContextVar[Path | None] = ContextVar("RECIPE_FOLDER", default=None)
"""Folder of the recipe file that is being read."""
NEEDS_WEIGHTS: ContextVar[bool] = ContextVar("NEEDS_WEIGHTS", default=False)
"""Whether the files of models that a recipe names must be here."""
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


def _expanded(path: str) -> str:
    """A path with the environment's variables in it put in. Raises ValueError for one that is not set."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise ValueError(f"the environment has no variable {name}: set it, or write the path out")
        return os.environ[name]

    return _VARIABLE.sub(value, path)


def _found(path: str) -> str:
    """A relative path of an input: that of the recipe's own folder, else that of the working directory.

    Raises ValueError where both are there, and are not the same.
    """
    folder = RECIPE_FOLDER.get()
    if folder is None or Path(path).is_absolute():
        return path
    beside = folder / path
    if not _is_there(beside):
        return path
    if _is_there(Path(path)) and beside.resolve() != Path(path).resolve():
        raise ValueError(
            f"it is in the recipe's folder ({beside}) and in the working directory ({Path(path).resolve()}): "
            "write the one that you mean out"
        )
    return str(beside)


def _fetched(wanted: Sequence[str]) -> AfterValidator:
    """From a name on the Hugging Face hub to where its files lie here; fetched only where weights are needed."""
    return AfterValidator(lambda path: str((found_path if NEEDS_WEIGHTS.get() else cached_path)(path, wanted)))


def is_file_name(name: str) -> bool:
    """Whether what may be a name of this package's, or a text file of one's own, is the file."""
    return name.endswith(".txt") or "/" in name


def _own_file(name: str) -> str:
    return _found(_expanded(name)) if is_file_name(name) else name


def _without_ending(prefix: str) -> str:
    return prefix.removesuffix(".bin").removesuffix(".idx") if Path(prefix).is_file() else prefix


def _is_there(path: Path) -> bool:
    """Whether a path, or a corpus of that PREFIX, exists."""
    return path.exists() or path.with_name(f"{path.name}.idx").exists()


PathText = Annotated[str, AfterValidator(_expanded)]
"""A path, in which $NAME and ${NAME} stand for the environment's variables."""
InputPath = Annotated[str, AfterValidator(_expanded), AfterValidator(_found)]
"""A path of what is there: a relative one lies in the recipe's folder, else in the working directory."""
CorpusPath = Annotated[InputPath, AfterValidator(_without_ending)]
"""PREFIX of a corpus; one of its files, PREFIX.bin or PREFIX.idx, stands for it."""
ModelPath = Annotated[InputPath, _fetched((*HUB_CONFIG_FILES, *HUB_TOKENIZER_FILES))]
"""A directory with a model's config.json, or a name on the Hugging Face hub."""
WeightsPath = Annotated[InputPath, _fetched(HUB_MODEL_FILES)]
"""A directory with weights, or a name on the Hugging Face hub."""
TokenizerPath = Annotated[InputPath, _fetched(HUB_TOKENIZER_FILES)]
"""A directory with a tokenizer, or a name on the Hugging Face hub."""


NameOrFile = Annotated[str, AfterValidator(_own_file)]
"""A name of this package's, or the path of a text file of one's own, as an InputPath."""


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
