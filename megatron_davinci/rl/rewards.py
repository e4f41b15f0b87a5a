"""Rewards of a response: how well its length meets the budget (Eq. 2), whether its answer is the next token (Eq. 5).

Texts are bytes, since a token may be part of a character. A grader of your own is a `TokenGrader`, which a recipe names
as objective.reward.grader: package.module:name.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

FirstToken = Callable[[bytes], bytes]
"""A text -> the bytes of its first token, as the tokenizer cuts it."""


@dataclass(frozen=True)
class TokenGrader:
    """Whether an answer is the next token."""

    is_correct: Callable[[bytes, Sequence[bytes], FirstToken], bool]
    """(answer, continuation, first token of a text): the answer is not empty, and the continuation is the bytes of the
    true tokens from the position on, one or more."""
    can_match: Callable[[bytes], bool] = lambda token: True
    """Whether some answer is correct for a token: others are never asked for."""

    def __call__(self, answer: bytes | None, continuation: Sequence[bytes], first_token_of: FirstToken) -> bool:
        """Whether an answer is correct; none and an empty one never are."""
        return bool(answer) and self.is_correct(answer or b"", continuation, first_token_of)


def length_reward(length: int, budget: int, maximum: float = 1.0) -> float:
    """Eq. 2: a triangle over `length` content tokens: 0 at none, `maximum` at the budget, 0 from twice it on.

    Where there is no budget (0), length is worth nothing.
    """
    if not budget:
        return 0.0
    if length <= budget:
        return maximum * length / budget
    return maximum * max(0, 2 * budget - length) / budget


def reward(correct: float, length: float, weight: float, length_only_if_correct: bool = False) -> float:
    """Eq. 5: (1 - w) * correct + w * r_len; where `length_only_if_correct`, the second term counts for correct answers
    alone."""
    return (1 - weight) * correct + (weight * length if correct or not length_only_if_correct else 0.0)


def _is_token(answer: bytes, continuation: Sequence[bytes], first_token_of: FirstToken) -> bool:
    return answer == continuation[0]


def _is_prefix(answer: bytes, continuation: Sequence[bytes], first_token_of: FirstToken) -> bool:
    begun = b""
    for token in continuation:
        begun += token
        if len(begun) >= len(answer):
            break
    return begun == answer


def _starts_with_token(answer: bytes, continuation: Sequence[bytes], first_token_of: FirstToken) -> bool:
    return first_token_of(answer) == continuation[0]


def _is_same_text(answer: bytes, continuation: Sequence[bytes], first_token_of: FirstToken) -> bool:
    return plain_text(answer) == plain_text(continuation[0]) != ""


def plain_text(text: bytes) -> str:
    """The text that strip_casefold compares: without white space around, and without case."""
    return text.decode(errors="surrogateescape").strip().casefold()


token_exact = TokenGrader(_is_token)
"""The answer's bytes are the token's."""
byte_prefix = TokenGrader(_is_prefix)
"""RPT: the answer's bytes start the continuation, and end with one of its tokens."""
first_token = TokenGrader(_starts_with_token)
"""The first token of the answer, as the tokenizer cuts it, is the token."""
strip_casefold = TokenGrader(_is_same_text, can_match=lambda token: bool(plain_text(token)))
"""The same text, without white space around and without case."""
