"""Reading a response: its thought, and the answer in the last \\boxed{...} after it.

Tags and boxes may span tokens, so they are looked for in bytes; tokens are counted by where they lie.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

CLOSE = b"</think>"
BOX = b"\\boxed{"


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

    A token that holds a part of the closing tag is not counted as content: content tokens lie wholly before it.
    """
    text = b"".join(tokens)
    at = text.find(CLOSE)
    if at < 0:
        return Reading(closed=False, thought_tokens=len(tokens), answer=None)
    ends = accumulate(len(token) for token in tokens)
    return Reading(True, sum(end <= at for end in ends), last_boxed(text[at + len(CLOSE) :]))


def last_boxed(text: bytes) -> bytes | None:
    """What stands in the last \\boxed{...} whose braces are balanced, as it is; None where there is none."""
    at = text.rfind(BOX)
    while at >= 0:
        depth, start = 1, at + len(BOX)
        for end in range(start, len(text)):
            depth += (text[end] == ord("{")) - (text[end] == ord("}"))
            if depth == 0:
                return text[start:end]
        at = text.rfind(BOX, 0, at)
    return None


def can_be_boxed(target: bytes) -> bool:
    """Whether \\boxed{} can hold these bytes: no brace closes before it opens, none is left open."""
    depth = 0
    for byte in target:
        depth += (byte == ord("{")) - (byte == ord("}"))
        if depth < 0:
            return False
    return depth == 0
