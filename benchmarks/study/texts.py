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
NUM_LEVELS = 4
SEED = 1234
# Sums of each level, at most: a level has what it has, and pre-training reads what the others leave.
SUMS = {"test": 150, "problems": 256, "format": 96, "train": 64, "pretrain": 4000}


class Sum(NamedTuple):
    """Numbers to add up; the more digits, the harder."""

    terms: tuple[int, ...]
    level: int

    @property
    def question(self) -> str:
        """As a text begins."""
        return f"# {' + '.join(map(str, self.terms))}\n"

    @property
    def answer(self) -> str:
        """What they add up to."""
        return str(sum(self.terms))

    @property
    def steps(self) -> str:
        """How it is found: column by column, from the right, or term by term where all have one digit."""
        lines = _chain(self.terms) if max(self.terms) < 10 else _columns(*self.terms)
        return "\n".join([*lines, f"{' + '.join(map(str, self.terms))} = {self.answer}"])


def _chain(terms: tuple[int, ...]) -> Iterator[str]:
    total = terms[0]
    for term in terms[1:-1]:
        yield f"{total} + {term} = {total + term}"
        total += term


def _columns(first: int, second: int) -> Iterator[str]:
    carry = 0
    for place in range(len(str(max(first, second)))):
        digits = [number // 10**place % 10 for number in (first, second) if number >= 10**place]
        added = [*digits, *([carry] if carry else [])]
        if len(added) > 1:
            yield f"{' + '.join(map(str, added))} = {sum(added)}"
        carry = sum(added) // 10


def sums() -> dict[str, list[Sum]]:
    """Split -> sums, as many of each level; none is in two splits."""
    one, two, three = range(1, 10), range(10, 100), range(100, 1000)
    found: dict[str, list[Sum]] = {split: [] for split in SUMS}
    for level, ranges in enumerate(((one, one, one), (two, one), (two, two), (three, two)), 1):
        every = list(product(*ranges))
        order = iter(random.Random(SEED + level).sample(every, min(len(every), sum(SUMS.values()))))
        for split, count in SUMS.items():
            found[split] += [Sum(terms, level) for terms, _ in zip(order, range(count), strict=False)]
    return found


def functions() -> dict[str, list[str]]:
    """Split -> texts: whole files to pre-train on, and functions of other files; in an order that mixes files."""
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, dict[str, None]] = {split: {} for split, _ in SHARES}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if LEFT_OUT.isdisjoint(name.parts):
            split = _split_of(name.as_posix())
            text = path.read_text(errors="replace")
            found[split].update(dict.fromkeys([text] if split == "pretrain" else _functions_of(text)))
            if split == "pretrain":  # the form of answers is learnt on what is known
                found["format"].update(dict.fromkeys(_functions_of(text)))
    seen = set(found["pretrain"])
    for split, _ in SHARES[1:]:
        found[split] = {text: None for text in found[split] if text not in seen}
        seen.update(found[split])
    return {split: random.Random(SEED).sample(list(texts), len(texts)) for split, texts in found.items()}


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
