"""What an engine is asked for, and what it gives: responses to prompts that share the text before them. Torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from megatron_davinci.rollout.records import Response


@dataclass(frozen=True)
class Question:
    """The prompt text[:position] and then `instruction`, ids that may be none.

    `draws` (G, longest) in [0, 1): each token of each response is drawn by one of these numbers, so that the same
    policy gives the same responses, whoever else is answered beside them. G and the longest response are its shape.
    """

    position: int
    instruction: Sequence[int]
    draws: NDArray[np.float64]


@dataclass(frozen=True)
class Text:
    """Ids, and what is asked about them."""

    ids: Sequence[int]
    questions: Sequence[Question]


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0: always the likeliest token. `top_p`: only the likeliest, until they have this much together.

    What is recorded is the token's log-probability at the temperature (at 1 where it is 0), before `top_p` cuts.
    """

    temperature: float = 1.0
    top_p: float = 1.0


class Engine(Protocol):
    """Answers texts with the policy's present weights."""

    def answer(self, texts: Sequence[Text], sampling: Sampling) -> list[list[list[Response]]]:
        """Responses by text, by question; a response ends with a token that stops it, or at its longest."""
        ...
