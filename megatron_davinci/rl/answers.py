"""Reading a response: its thought, the answer in a \\boxed{...} after it, and where the response ends.

Tags and boxes may span tokens, so they are looked for in bytes; tokens are counted by where they lie. It imports the
standard library alone: a rollout server's own environment has little else of this project.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_davinci.rl.rollout_files import Response

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


def read_response(tokens: Sequence[bytes], first: bool = False) -> Reading:
    """Read a response, whose prompt ended with an opened <think>, from the bytes of its tokens. Its answer is in the
    last box after the thought, or in the `first` one, where responses end with it.

    A token that holds a part of the closing tag is not counted as content: content tokens lie wholly before it. Nor is
    one without bytes: a control token.
    """
    text = b"".join(tokens)
    at = text.find(CLOSE)
    if at < 0:
        return Reading(closed=False, thought_tokens=sum(map(bool, tokens)), answer=None)
    ends = accumulate(len(token) for token in tokens)
    thought = sum(bool(token) and end <= at for token, end in zip(tokens, ends, strict=True))
    after = text[at + len(CLOSE) :]
    return Reading(True, thought, first_boxed(after) if first else last_boxed(after))


class AnswerEnd:
    """Where a response ends by itself: behind the token in which the first balanced \\boxed{} after </think> closes.

    `texts`: the bytes of each id. Ids beyond are none, as those that pad a vocabulary.
    """

    def __init__(self, texts: Sequence[bytes]) -> None:
        self.texts = texts

    def __call__(self) -> Callable[[int], bool]:
        """For one response that is being written: a function of its next token, whether that ends it."""
        text = bytearray()
        after = -1  # where what follows the thought begins

        def ends(token: int) -> bool:
            nonlocal after
            new = self.texts[token] if token < len(self.texts) else b""
            begin = max(0, len(text) - len(CLOSE) + 1)
            text.extend(new)
            if after < 0:
                found = text.find(CLOSE, begin)
                after = -1 if found < 0 else found + len(CLOSE)
            return after >= 0 and b"}" in new and _first_box(bytes(text[after:])) is not None

        return ends

    def position(self, tokens: Sequence[int]) -> int | None:
        """How many tokens there are up to the end; None where the response does not end by itself."""
        texts = [self.texts[id_] if id_ < len(self.texts) else b"" for id_ in tokens]
        text = b"".join(texts)
        begin = text.find(CLOSE)
        box = None if begin < 0 else _first_box(text[begin + len(CLOSE) :])
        if box is None:
            return None
        last = begin + len(CLOSE) + box[1]  # where the closing brace lies
        return next(number for number, end in enumerate(accumulate(map(len, texts)), 1) if end > last)

    def cut(self, response: "Response") -> "Response":
        """The response up to its end; what came after is counted, and not trained on."""
        end = self.position(response.tokens)
        if end is None:
            return response
        rest = len(response.tokens) - end
        known = response.reference_log_probs
        return replace(
            response,
            tokens=response.tokens[:end],
            log_probs=response.log_probs[:end],
            reference_log_probs=None if known is None else known[:end],
            finished=True,
            cut_tokens=response.cut_tokens + rest,
        )


def first_boxed(text: bytes) -> bytes | None:
    """What stands in the \\boxed{...} that is the first to close, as it is; None where none does."""
    box = _first_box(text)
    return None if box is None else text[box[0] : box[1]]


def _first_box(text: bytes) -> tuple[int, int] | None:
    opened: list[tuple[int, bool]] = []  # where what a brace opens begins, and whether it is a box
    for found in _BRACE.finditer(text):
        if found.group() != b"}":
            opened.append((found.end(), len(found.group()) > 1))
        elif opened:
            start, boxed = opened.pop()
            if boxed:
                return start, found.start()
    return None


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
