"""A model that somebody serves, as one that answers prompts."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from megatron_davinci.rl.engines.base import GenerationRequest, RequestBranch, Responses, Sampling
from megatron_davinci.rl.rollout_files import Response
from megatron_davinci.serve.completions import CompletionClient

_AT_ONCE = 64


class ServedModel:
    """A vLLM server with OpenAI's protocol, as `davinci serve` starts one. Ids go in, and come out."""

    def __init__(self, address: str, stop_token_ids: frozenset[int]) -> None:
        self._client, self._stop_token_ids = CompletionClient(address), stop_token_ids

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> Responses:
        """See `rl.engines.base.Engine`. Raises InputError and WorkFailed."""
        branches = [(request, branch) for request in requests for branch in request.branches]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            asked = [pool.submit(self._ask, request, branch, sampling) for request, branch in branches]
            answered = iter([each.result() for each in asked])
        return [[next(answered) for _ in request.branches] for request in requests]

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def _ask(self, request: GenerationRequest, branch: RequestBranch, sampling: Sampling) -> list[Response]:
        prompt = [*request.ids[: branch.position], *branch.instruction]
        responses = []
        for uniforms in branch.uniforms:
            seed, stops = int(uniforms[0] * (1 << 53)), sorted(self._stop_token_ids)
            ids, log_probs = self._client.complete_ids(prompt, len(uniforms), sampling.temperature, seed, stops)
            responses.append(Response(ids, log_probs, ids[-1] in self._stop_token_ids))
        return responses
