"""Rewards of a response: how well its length meets the budget (Eq. 2), whether its answer is the next token (Eq. 5).

Texts are bytes, since a token may be part of a character.
"""

from collections.abc import Callable, Sequence
from typing import Literal

Match = Literal["token_exact", "byte_prefix", "first_token", "strip_casefold"]


def length_reward(length: int, budget: int, largest: float = 1.0) -> float:
    """Eq. 2: a triangle over `length` content tokens: 0 at none, `largest` at the budget, 0 from twice it on.

    Where there is no budget (0), length is worth nothing.
    """
    if not budget:
        return 0.0
    if length <= budget:
        return largest * length / budget
    return largest * max(0, 2 * budget - length) / budget


def reward(match: float, of_length: float, weight: float, only_where_matched: bool = False) -> float:
    """Eq. 5: (1 - w) * match + w * r_len; the second term, if so asked, only for a right answer."""
    return (1 - weight) * match + (weight * of_length if match or not only_where_matched else 0.0)


def matches(
    kind: Match,
    answer: bytes | None,
    continuation: Sequence[bytes],
    first_token_of: Callable[[bytes], bytes],
) -> bool:
    """Whether an answer is the next token; `continuation` are the bytes of the true tokens from there on, one or more.

    token_exact: the answer's bytes are the token's. byte_prefix (RPT): they begin the continuation and end with one of
    its tokens. first_token: the first token of the answer, as the tokenizer cuts it, is the token. strip_casefold: the
    same text without white space around and without case.
    """
    if not answer:
        return False
    if kind == "token_exact":
        return answer == continuation[0]
    if kind == "byte_prefix":
        return _ends_on_a_token(answer, continuation)
    if kind == "first_token":
        return first_token_of(answer) == continuation[0]
    return plain_text(answer) == plain_text(continuation[0]) != ""


def _ends_on_a_token(answer: bytes, continuation: Sequence[bytes]) -> bool:
    begun = b""
    for token in continuation:
        begun += token
        if len(begun) >= len(answer):
            break
    return begun == answer


def plain_text(text: bytes) -> str:
    """What strip_casefold compares."""
    return text.decode(errors="surrogateescape").strip().casefold()
