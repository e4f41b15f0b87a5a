"""An engine that answers one step ahead without a server: a copy of the policy in the trainer's own engine."""

from collections.abc import Sequence
from typing import Any, Literal, Self

from megatron_davinci.config.rollouts import EngineOptions
from megatron_davinci.core.groups import broadcast_object
from megatron_davinci.core.optimizer import gathered_weights
from megatron_davinci.core.weight_stream import stream_weights
from megatron_davinci.rl.engines.base import Engine, EngineContext, GenerationRequest, Responses, Sampling
from megatron_davinci.rl.engines.megatron import MegatronEngine
from megatron_davinci.serve.digests import combine_digests, tensor_digest


class AheadRollouts(EngineOptions):
    """Options."""

    engine_class = "ahead_engine:AheadEngine"
    cache_tokens: int = 65536
    max_lag: Literal[0, 1] = 1

    def lag_limit(self) -> int:
        return self.max_lag


class AheadEngine(Engine):
    """Answers at once what it is to answer meanwhile: the weights are those of the moment."""

    works_ahead = True

    def __init__(self, context: EngineContext) -> None:
        self._context, self._own = context, MegatronEngine.of(context)
        self._ahead: Responses | None = None

    @classmethod
    def of(cls, context: EngineContext) -> Self:
        return cls(context)

    def update(self, step: int) -> str:
        context = self._context
        with gathered_weights(context.chunks):
            streamed = stream_weights(list(context.chunks), context.model)
            weights = combine_digests({name: tensor_digest(tensor) for name, tensor in streamed})
        return broadcast_object(weights)

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> Responses:
        return self._own.generate(requests, sampling)

    def start(self, share: Sequence[GenerationRequest], count: int, sampling: Sampling) -> None:
        self._ahead = self.generate_all(share, count, sampling)

    def finish(self) -> Responses | None:
        found, self._ahead = self._ahead, None
        return found

    def describe(self) -> dict[str, Any]:
        return {"engine_version": "test"}
