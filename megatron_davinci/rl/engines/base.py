"""What a rollout engine is asked for, and what it gives: responses to prompts that share the text before them.

An engine of your own is a subclass of `Engine`, with a section of the recipe (`config.objectives.EngineOptions`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from megatron_davinci.rl.rollout_files import Response


@dataclass(frozen=True)
class RequestBranch:
    """The prompt ids[:position] of the request, and then `instruction`, ids that may be none.

    `uniforms` (G, max_tokens) in [0, 1): each token of each response is drawn by one of these numbers, so that the same
    policy gives the same responses, whoever else is answered beside them. Its shape says G and the longest response.
    """

    position: int
    instruction: Sequence[int]
    uniforms: NDArray[np.float64]


@dataclass(frozen=True)
class GenerationRequest:
    """Ids, and the prompts that branch off them."""

    ids: Sequence[int]
    branches: Sequence[RequestBranch]


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0: always the likeliest token. `top_p`: only the likeliest, until they have this much together.

    What is recorded is the token's log-probability at the temperature (at 1 where it is 0), before `top_p` cuts.
    `ends` makes, for each response, a function of its next token: whether that ends it, as a stop token does. An engine
    may leave it aside: what follows the end is cut off afterwards, and counted.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    ends: Callable[[], Callable[[int], bool]] | None = None


class Engine(ABC):
    """Generates responses with the policy's present weights."""

    @classmethod
    @abstractmethod
    def of(
        cls,
        chunks: Sequence[Any],
        device: Any,
        stage: Any,
        options: Any,
        stop_token_ids: frozenset[int],
        on_token: Callable[[], None] = lambda: None,
    ) -> Self:
        """An engine for the model whose `chunks` this rank holds, in the layout of a `StageRecipe`.

        `options` are the recipe's section; a response ends with one of `stop_token_ids`; `on_token` is called after
        every token, which tells the watchdog that work goes on.
        """

    @abstractmethod
    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[list[list[Response]]]:
        """Responses by request, by branch; a response ends with a stop token, where `sampling.ends` says so, or at
        max_tokens. All ranks of one replica call it together, with the same requests."""
