"""Real text that every machine has, the functions of Python's standard library, and sums of graded difficulty.

Splits are by file: no function of a file that the model was trained on is asked for.
"""

import ast
import hashlib
import random
import sysconfig
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

LEFT_OUT = {"test", "tests", "site-packages", "lib2to3", "encodings", "turtledemo", "pydoc_data", "idlelib"}
SHARES = (("pretrain", 60), ("format", 8), ("train", 16), ("tune", 6), ("test", 10))
"""Of files, in percent."""
CHARACTERS = range(250, 701)  # of a function that is asked about
SEED = 1234
# Sums of each level, at most: a level has what it has, and pre-training reads what the others leave.
SUMS = {"test": 150, "problems": 256, "format": 96, "train": 64, "pretrain": 2500}
_ONE, _TWO, _THREE = range(1, 10), range(10, 100), range(100, 1000)
SHAPES = (((_TWO, _ONE), (_ONE, _TWO)), ((_TWO, _TWO),), ((_THREE, _TWO), (_TWO, _THREE)), ((_THREE, _THREE),))
"""Of each level: what the terms are."""


class Source(NamedTuple):
    """A text, and the file that it is in."""

    text: str
    file: str


class Sum(NamedTuple):
    """Numbers to add up; the more digits, the harder."""

    terms: tuple[int, int]
    level: int

    @property
    def question(self) -> str:
        """As a text begins."""
        return f"# {self.terms[0]} + {self.terms[1]}\n"

    @property
    def answer(self) -> str:
        """What they add up to."""
        return str(sum(self.terms))

    @property
    def steps(self) -> str:
        """How it is found: column by column, from the right."""
        return "\n".join([*_columns(*self.terms), f"{self.terms[0]} + {self.terms[1]} = {self.answer}"])


def _columns(first: int, second: int) -> Iterator[str]:
    carry = 0
    for place in range(len(str(max(first, second)))):
        digits = [number // 10**place % 10 for number in (first, second) if number >= 10**place]
        added = [*digits, *([carry] if carry else [])]
        if len(added) > 1:
            yield f"{' + '.join(map(str, added))} = {sum(added)}"
        carry = sum(added) // 10


def sums() -> dict[str, list[Sum]]:
    """Split -> sums; none is in two splits, nor are its terms the other way round. See SUMS for how many there are."""
    found: dict[str, list[Sum]] = {split: [] for split in SUMS}
    for level, shapes in enumerate(SHAPES, 1):
        every = [terms for shape in shapes for terms in product(*shape)]
        room, home = dict(SUMS), dict[tuple[int, int], str]()
        for first, second in random.Random(SEED + level).sample(every, min(len(every), 3 * sum(SUMS.values()))):
            terms = (min(first, second), max(first, second))
            split = home.setdefault(terms, next((name for name in room if room[name]), ""))
            if split and room[split]:
                room[split] -= 1
                found[split].append(Sum((first, second), level))
    return found


def functions() -> dict[str, list[Source]]:
    """Split -> texts: whole files to pre-train on, and functions of other files; in an order that mixes files."""
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, dict[str, str]] = {split: {} for split, _ in SHARES}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if LEFT_OUT.isdisjoint(name.parts):
            split = _split_of(name.as_posix())
            text = path.read_text(errors="replace")
            found[split].update(dict.fromkeys([text] if split == "pretrain" else _functions_of(text), name.as_posix()))
            if split == "pretrain":  # the form of answers is learnt on what is known, and on some more
                found["format"].update(dict.fromkeys(_functions_of(text), name.as_posix()))
    seen = set(found["pretrain"])
    for split, _ in SHARES[1:]:
        found[split] = {text: name for text, name in found[split].items() if text not in seen}
        seen.update(found[split])
    shuffled = {split: random.Random(SEED).sample(list(texts), len(texts)) for split, texts in found.items()}
    return {split: [Source(text, found[split][text]) for text in texts] for split, texts in shuffled.items()}


def _split_of(name: str) -> str:
    at = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 100
    for split, share in SHARES:
        if at < share:
            return split
        at -= share
    raise AssertionError("the shares add up to 100")


def _functions_of(text: str) -> Iterator[str]:
    try:
        tree = ast.parse(text)
    except SyntaxError:  # some files of the library are wrong on purpose
        return
    lines = text.splitlines(keepends=True)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = "".join(lines[node.lineno - 1 : node.end_lineno])
            if len(function) in CHARACTERS:
                yield function
