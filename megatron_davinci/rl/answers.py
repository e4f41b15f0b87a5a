"""Reading a response: its thought, and the answer in the last \\boxed{...} after it.

Tags and boxes may span tokens, so they are looked for in bytes; tokens are counted by where they lie.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

CLOSE = b"</think>"
_BRACE = re.compile(rb"\\boxed\{|[{}]")


@dataclass(frozen=True)
class Reading:
    """`closed`: the thought ended with </think>; `thought_tokens`: content tokens of it, tags not counted.

    An unclosed response is all thought, and has no answer.
    """

    closed: bool
    thought_tokens: int
    answer: bytes | None


def read_response(tokens: Sequence[bytes]) -> Reading:
    """Read a response, whose prompt ended with an opened <think>, from the bytes of its tokens.

    A token that holds a part of the closing tag is not counted as content: content tokens lie wholly before it. Nor is
    one without bytes: a control token.
    """
    text = b"".join(tokens)
    at = text.find(CLOSE)
    if at < 0:
        return Reading(closed=False, thought_tokens=sum(map(bool, tokens)), answer=None)
    ends = accumulate(len(token) for token in tokens)
    thought = sum(bool(token) and end <= at for token, end in zip(tokens, ends, strict=True))
    return Reading(True, thought, last_boxed(text[at + len(CLOSE) :]))


def last_boxed(text: bytes) -> bytes | None:
    """What stands in the last \\boxed{...} whose braces are balanced, as it is; None where there is none."""
    opened: list[tuple[int, bool]] = []  # where what a brace opens begins, and whether it is a box
    last: tuple[int, int] | None = None
    for found in _BRACE.finditer(text):
        if found.group() != b"}":
            opened.append((found.end(), len(found.group()) > 1))
        elif opened:
            start, boxed = opened.pop()
            if boxed and (last is None or start > last[0]):
                last = (start, found.start())
    return None if last is None else text[last[0] : last[1]]


def can_be_boxed(target: bytes) -> bool:
    """Whether \\boxed{} can hold these bytes: no brace closes before it opens, none is left open."""
    depth = 0
    for byte in target:
        depth += (byte == ord("{")) - (byte == ord("}"))
        if depth < 0:
            return False
    return depth == 0
