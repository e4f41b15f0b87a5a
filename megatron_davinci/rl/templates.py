"""The prompt around a prefix, as token ids: prefixes are never decoded and encoded again, which would change 1 in 20.

A template is a file with {text} where the document goes and {budget} where B_t goes; \\boxed{{...}} writes braces. What
stands before {text} is the preamble, what follows the instruction, which ends with an opened <think> and a newline.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files

from data_prep import InputError
from data_prep.io.registry import nearest

_TEMPLATES = files("megatron_davinci.rl") / "template_files"
_OPENING = "<think>\n"


@dataclass(frozen=True)
class PromptTemplate:
    """A template with a tokenizer's `encode`. `name` is its file's, version included."""

    name: str
    preamble: str
    instruction: str
    encode: Callable[[str], Sequence[int]] = field(repr=False)
    begin: Sequence[int] = ()

    def preamble_ids(self) -> list[int]:
        """Ids before the document, `begin` (BOS) first; none where the prompt begins with the document itself. The same
        for every budget. InputError where the template has {budget} there."""
        if "{budget}" in self.preamble:
            raise InputError(
                f"template {self.name} names the budget before the text: all positions of a document share what comes "
                "before it, so the budget must follow"
            )
        return [*self.begin, *self.encode(self.preamble.format())] if self.preamble else []

    def check_budget(self, has_one: bool) -> None:
        """Raise InputError where the template names a budget that there is not, or is silent about the one there is."""
        names_one = "{budget}" in self.instruction
        if names_one and not has_one:
            raise InputError(
                f"template {self.name} names a budget, objective.budget is null: take a template with free in its name"
            )
        if has_one and not names_one:
            raise InputError(
                f"template {self.name} names no budget, by which length would be rewarded: set objective.budget to "
                "null, or take a template without free in its name"
            )

    def instruction_ids(self, budget: int) -> list[int]:
        """Ids after the prefix."""
        return list(self.encode(self.instruction.format(budget=budget)))


def load_template(name: str, encode: Callable[[str], Sequence[int]], begin: Sequence[int] = ()) -> PromptTemplate:
    """A template of this package by name; `begin`: what the tokenizer puts before a text.

    Raises InputError for an unknown one, or one that is none.
    """
    path = _TEMPLATES / f"{name}.txt"
    if not path.is_file():
        known = sorted(entry.name.removesuffix(".txt") for entry in _TEMPLATES.iterdir())
        raise InputError(f"template '{name}' is unknown; known: {', '.join(known)}{nearest(name, known)}")
    preamble, marker, instruction = path.read_text().partition("{text}")
    if not marker or not instruction.endswith(_OPENING):
        raise InputError(f"template {name} lacks {{text}}, or does not end with <think> and a newline")
    return PromptTemplate(name, preamble, instruction, encode, begin)
