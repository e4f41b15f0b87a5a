"""What a rollout engine is asked for, and what it gives: responses to prompts that share the text before them.

An engine of your own is a subclass of `Engine`, with a section of the recipe (`config.rollouts.EngineOptions`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from megatron_davinci.config import StageRecipe
from megatron_davinci.core.groups import all_gather_object, data_group, sync_errors
from megatron_davinci.models.config import ModelConfig
from megatron_davinci.rl.rollout_files import Response

Responses = list[list[list[Response]]]
"""By request, by branch, as many as the branch asks for."""


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
    may leave it aside: what follows the end is cut off afterwards, and counted. Where answers end responses, it is a
    `rl.answers.AnswerEnd`.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    ends: Callable[[], Callable[[int], bool]] | None = None


@dataclass(frozen=True)
class EngineContext:
    """What an engine is made of: the model whose `chunks` this rank holds, in the layout of `stage`.

    `options` are the recipe's section; a response ends with one of `stop_token_ids`; `directory` is for files of its
    own, beside the run's; `on_token` tells the watchdog that work goes on, at every token or every few seconds.
    """

    chunks: Sequence[Any]
    device: Any
    stage: StageRecipe
    model: ModelConfig
    options: Any
    stop_token_ids: frozenset[int]
    directory: Path
    on_token: Callable[[], None] = lambda: None


class AnswersPrompts(Protocol):
    """All that an evaluation needs of an engine, or of a model that is served."""

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> Responses:
        """See `Engine`."""

    def close(self) -> None:
        """See `Engine`."""


class Engine(ABC):
    """Generates responses with the policy's present weights."""

    works_ahead: ClassVar[bool] = False
    """Whether `start` and `finish` generate while the trainer does something else."""

    @classmethod
    @abstractmethod
    def of(cls, context: EngineContext) -> Self:
        """All ranks call it together."""

    @abstractmethod
    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> Responses:
        """Responses by request, by branch; a response ends with a stop token, where `sampling.ends` says so, or at
        max_tokens. All ranks of one replica call it together, with the same requests."""

    def update(self, step: int) -> str | None:
        """Have the engine hold the trainer's weights as they are after `step` steps; gives their fingerprint, the same
        on every rank, and None for an engine that uses the trainer's own. All ranks call it together, before the first
        request and after a step."""
        return None

    def generate_all(self, share: Sequence[GenerationRequest], count: int, sampling: Sampling) -> Responses:
        """Responses to all `count` requests, on every rank: data-parallel rank r of n gives requests r, r + n, ..."""
        with sync_errors():
            ours = self.generate(share, sampling)
        return gather_shares(ours, count)

    def start(self, share: Sequence[GenerationRequest], count: int, sampling: Sampling) -> None:
        """Begin to do the same, with the weights of the last `update`; see `works_ahead`."""
        raise NotImplementedError

    def finish(self) -> Responses | None:
        """Responses to what was started; None where they are lost, and must be generated anew."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Facts for the header of a rollout file, such as the engine's version."""
        return {}

    def close(self) -> None:  # noqa: B027  # most engines have nothing to end
        """End what the engine has started. All ranks call it together."""


def gather_shares(ours: Responses, count: int) -> Responses:
    """Responses to all `count` requests, of which data-parallel rank r of n has answered r, r + n, ..."""
    shares = all_gather_object(ours, data_group())
    return [shares[number % len(shares)][number // len(shares)] for number in range(count)]


def flatten(responses: Responses) -> list[list[Response]]:
    """By branch."""
    return list(chain.from_iterable(responses))
