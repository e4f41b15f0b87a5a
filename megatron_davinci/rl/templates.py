"""The prompt around a prefix, as token ids: prefixes are never decoded and encoded again, which would change 1 in 20.

A template is a file with {text} where the document goes and {budget} where B_t goes; \\boxed{{...}} writes braces. What
stands before {text} is the preamble, what follows the instruction, which ends with an opened <think> and a newline.
Those of this package have names, which say their version; a recipe may name a file of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from string import Formatter
from typing import Protocol

from data_prep import InputError
from data_prep.io.files import read_text
from data_prep.io.registry import nearest
from megatron_davinci.config.section import is_file_name

_TEMPLATES = files("megatron_davinci.rl") / "template_files"
OPENING = "<think>\n"


class AroundText(Protocol):
    """What stands around a prompt: ids before the text and behind it, with a template's own words in them."""

    def before(self, words: str) -> list[int]:
        """Ids before the text."""

    def after(self, words: str) -> list[int]:
        """Ids behind it."""


@dataclass(frozen=True)
class PromptTemplate:
    """A template with a tokenizer's `encode`. `name` is its file's, version included."""

    name: str
    preamble: str
    instruction: str
    encode: Callable[[str], Sequence[int]] = field(repr=False)
    begin: Sequence[int] = ()
    chat: AroundText | None = None
    """A chat template, which says itself what a text begins with."""

    def preamble_ids(self) -> list[int]:
        """Ids before the document, `begin` (BOS) first; none where the prompt begins with the document itself. The same
        for every budget. InputError where the template has {budget} there."""
        if "{budget}" in self.preamble:
            raise InputError(
                f"template {self.name} names the budget before the text: all positions of a document share what comes "
                "before it, so the budget must follow"
            )
        if self.chat is not None:
            return self.chat.before(self.preamble.format())
        return [*self.begin, *self.encode(self.preamble.format())] if self.preamble else []

    def check_budget(self, has_one: bool) -> None:
        """Raise InputError where the template names a budget that there is not, or is silent about the one there is."""
        names_one = "{budget}" in self.instruction
        if names_one and not has_one:
            raise InputError(
                f"template {self.name} has {{budget}}, and the objective has no budget: take a template with free in "
                "its name, or leave {budget} out of your own"
            )
        if has_one and not names_one:
            raise InputError(
                f"template {self.name} lacks {{budget}}, by which length is rewarded: set objective.budget to null, "
                "take a template without free in its name, or put {budget} into your own"
            )

    def instruction_ids(self, budget: int) -> list[int]:
        """Ids after the prefix."""
        words = self.instruction.format(budget=budget)
        return list(self.encode(words)) if self.chat is None else self.chat.after(words)


def load_template(
    name: str,
    encode: Callable[[str], Sequence[int]],
    begin: Sequence[int] = (),
    chat: AroundText | None = None,
) -> PromptTemplate:
    """A template of this package by name, or a file; `begin`: what the tokenizer puts before a text.

    Raises InputError for an unknown one, or one that is none.
    """
    text = _own_text(name) if is_file_name(name) else _text_of(name)
    preamble, marker, instruction = text.partition("{text}")
    if not marker:
        raise InputError(f"template {name} lacks {{text}}: put it where the text goes")
    if "{text}" in instruction:
        raise InputError(f"template {name} has {{text}} twice: leave one out")
    if "\r" in text:
        raise InputError(
            f"template {name} has line ends of Windows, which would be part of the prompt: save it without"
        )
    if not instruction.endswith(OPENING):
        raise InputError(f"template {name} does not end with <think> and a newline, which open the thought: add them")
    for part in (preamble, instruction):
        _check_fields(name, part)
    return PromptTemplate(name, preamble, instruction, encode, begin, chat)


def _text_of(name: str) -> str:
    path = _TEMPLATES / f"{name}.txt"
    if not path.is_file():
        known = sorted(entry.name.removesuffix(".txt") for entry in _TEMPLATES.iterdir())
        raise InputError(
            f"template '{name}' is unknown; known: {', '.join(known)}{nearest(name, known)}; a file of your own ends "
            "with .txt"
        )
    return path.read_text()


def _own_text(name: str) -> str:
    if not Path(name).is_file():
        raise InputError(f"template {name} is no file: write it, or name a template of this package")
    return read_text(Path(name))


def _check_fields(name: str, part: str) -> None:
    """Raise InputError for braces that would be filled with something else than the budget."""
    try:
        fields = [(field, spec, how) for _, field, spec, how in Formatter().parse(part) if field is not None]
    except ValueError as error:
        raise InputError(f"template {name}: {error}; write braces that stay as {{{{ and }}}}") from None
    for found, spec, how in fields:
        if (found, spec, how) != ("budget", "", None):
            raise InputError(
                f"template {name} has {{{found}}}, and nothing but {{text}}, once, and {{budget}} is known: write "
                "braces that stay as {{ and }}"
            )
