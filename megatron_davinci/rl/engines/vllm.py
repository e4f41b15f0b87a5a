"""Rollouts by vLLM servers, which are sent the trainer's weights, and believed in nothing.

A step: `update` streams every tensor to the servers (`serve.push`), then a probe: a fixed prompt is continued by each
server, and its log-probabilities must be those of the trainer's own forward pass. Fingerprints prove what has arrived,
only the probe what is computed with. Then prompts are asked, one request for each group, with a seed out of the group's
own random numbers. Where a server fails at anything, it is started again, gets all weights, and is asked the same.
"""

import math
import os
import secrets
import socket
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from statistics import fmean
from typing import Any, Self, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from data_prep import InputError, WorkFailed
from data_prep.io.errors import printable
from megatron_davinci.config.rollouts import VllmRollouts
from megatron_davinci.core.groups import all_gather_object, broadcast_object, data_rank, is_main_rank, run_on_one
from megatron_davinci.core.optimizer import gathered_weights
from megatron_davinci.core.score import score_continuation
from megatron_davinci.core.weight_stream import stream_weights, tensors_of
from megatron_davinci.rl.answers import AnswerEnd
from megatron_davinci.rl.engines.base import (
    Engine,
    EngineContext,
    GenerationRequest,
    RequestBranch,
    Responses,
    Sampling,
    gather_shares,
)
from megatron_davinci.rl.rollout_files import Response
from megatron_davinci.serve.carriers import Carrier, carrier_for
from megatron_davinci.serve.client import RolloutClient, ServerAddress, ServerError
from megatron_davinci.serve.push import WeightPush
from megatron_davinci.serve.rollout_servers import (
    LOOPBACK,
    GivenServers,
    RolloutServers,
    StartedServer,
    clients_of,
    node_address,
)

_T = TypeVar("_T")
_TRIES = 3
_SEQUENCES_AT_ONCE = 256  # for each server: vLLM decodes so many together unless told otherwise
_ABORT_SECONDS = 10
_Answers = dict[int, list[Response]]
_PROBE_PROMPT, _PROBE_TOKENS = 24, 16
# Largest difference in fp32, mean one in bf16, in nats: both sides round bf16 differently. Measured: 5e-6 and 0.02; a
# stale prefix cache made 0.3, an old output layer 0.1 to 0.8 at most.
_PROBE_LIMITS = {torch.float32: 1e-3, torch.bfloat16: 0.1}


class VllmEngine(Engine):
    """Servers hold the weights of `_step` under the version `_version`, or nothing: `_held` says which."""

    works_ahead = True

    def __init__(self, context: EngineContext, servers: RolloutServers, dtype: torch.dtype) -> None:
        self._context, self._servers, self._dtype = context, servers, dtype
        # two runs that send to one server see it at the first response
        self._run = broadcast_object(secrets.token_hex(4))
        self._clients: list[RolloutClient] = []
        self._carrier: Carrier | None = None
        self._step, self._held = -1, -1
        self._weights, self._server_version = "", ""
        self._has_texts = False
        self._ahead: Future[Responses] | None = None
        self._ahead_count = 0
        self._pool = ThreadPoolExecutor(1)

    @classmethod
    def of(cls, context: EngineContext) -> Self:
        """See `Engine`. The server starts with the first `update`."""
        options: VllmRollouts = context.options
        dtype = torch.bfloat16 if context.stage.megatron.bf16 else torch.float32
        return cls(context, _servers(context, options, str(dtype).removeprefix("torch.")), dtype)

    def update(self, step: int) -> str:
        """See `Engine`."""
        self._step = step
        self._try(self._hold_weights)
        return self._weights

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> Responses:
        """See `Engine`. Raises ServerError."""
        return self._generate(requests, sampling, {})

    def _generate(self, requests: Sequence[GenerationRequest], sampling: Sampling, known: _Answers) -> Responses:
        group, version = parallel_state.get_model_parallel_group(), self._version()
        work = (lambda: self._ask_all(requests, sampling, version, known)) if self._asks() else None
        return run_on_one(work, dist.get_process_group_ranks(group)[0], group, self._context.on_token)

    def generate_all(self, share: Sequence[GenerationRequest], count: int, sampling: Sampling) -> Responses:
        """See `Engine`. Answers that are there are kept when a server fails: the weights are the same."""
        ours: list[Responses] = []
        known: _Answers = {}

        def work() -> None:
            self._hold_weights()
            if not ours:
                ours.append(self._generate(share, sampling, known))

        self._try(work)
        return gather_shares(ours[0], count)

    def start(self, share: Sequence[GenerationRequest], count: int, sampling: Sampling) -> None:
        """See `Engine`."""
        self._ahead_count = count
        if self._asks():
            self._ahead = self._pool.submit(self._ask_all, share, sampling, self._version(), {})

    def finish(self) -> Responses | None:
        """See `Engine`."""
        running, self._ahead = self._ahead, None
        group = parallel_state.get_model_parallel_group()
        work = None if running is None else running.result
        ours, problem = self._attempt(
            lambda: run_on_one(work, dist.get_process_group_ranks(group)[0], group, self._context.on_token)
        )
        if self._failed(problem):
            return None
        assert ours is not None
        return gather_shares(ours, self._ahead_count)

    def describe(self) -> dict[str, Any]:
        """See `Engine`."""
        dtype = str(self._dtype).removeprefix("torch.")
        return {"engine_version": self._server_version, "weights": self._weights, "dtype": dtype}

    def close(self) -> None:
        """See `Engine`."""
        if self._ahead is not None and not self._ahead.done():
            self._abort_requests()
        self._disconnect()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._servers.close()

    def _abort_requests(self) -> None:
        """Nobody waits for answers any more: threads would, until their time is up."""
        for client in self._clients:
            hurried = RolloutClient(client.address, _ABORT_SECONDS)
            with suppress(ServerError):
                hurried.post("/pause?mode=abort")
            hurried.close()

    def _asks(self) -> bool:
        """Whether this rank asks for its replica."""
        return dist.get_rank() == dist.get_process_group_ranks(parallel_state.get_model_parallel_group())[0]

    # --- failures

    def _try(self, work: Callable[[], _T]) -> None:
        """Do what needs servers, on all ranks together; where one fails, once more with a server started anew."""
        for _ in range(_TRIES):
            _, problem = self._attempt(work)
            failed = self._failed(problem)
            if failed is None:
                return
        raise ServerError(f"{failed}; tried {_TRIES} times")

    def _attempt(self, work: Callable[[], _T]) -> tuple[_T | None, Exception | None]:
        try:
            return work(), None
        except (InputError, WorkFailed, FloatingPointError) as error:
            return None, error

    def _failed(self, problem: Exception | None) -> str | None:
        """The first failure of a server on any rank; all then begin anew. What is none of a server is raised on all."""
        failed = next((each for each in all_gather_object(problem) if each is not None), None)
        if failed is None:
            return None
        if not isinstance(failed, ServerError):
            raise failed
        said: str = broadcast_object(f"{failed}{self._servers.what_it_said()}" if is_main_rank() else "")
        self._disconnect()
        if is_main_rank():
            print(printable(f"rollout server: {said}; trying again"), file=sys.stderr, flush=True)
        return said

    # --- servers and weights

    def _hold_weights(self) -> None:
        """Have the servers up, with the weights of `_step`, and prove it."""
        if self._held == self._step:
            return
        if not self._clients:
            self._connect()
        version = self._version()
        self._weights = self._push(version)
        self._probe(version)
        self._held = self._step

    def _version(self) -> str:
        return f"{self._run}-{self._step}"

    def _connect(self) -> None:
        timeout = self._context.options.timeout
        work = self._servers.connect if is_main_rank() else None
        addresses: list[ServerAddress] = run_on_one(work, 0, None, self._context.on_token)
        self._clients = clients_of(addresses, timeout, self._context.model.vocab_size)
        self._carrier = carrier_for(self._clients, self._context.directory, self._context.device)
        self._server_version = run_on_one(self._introduce if is_main_rank() else None, 0, None, self._context.on_token)

    def _introduce(self) -> str:
        assert self._carrier is not None
        for client in self._clients:
            client.call_workers("davinci_reset")
        self._carrier.introduce(self._clients, tensors_of(self._context.model, self._dtype))
        return self._clients[0].version()

    def _disconnect(self) -> None:
        for client in self._clients:
            client.close()
        if self._carrier is not None:
            self._carrier.close()
        self._clients, self._carrier, self._has_texts, self._held = [], None, False, -1

    def _push(self, version: str) -> str:
        """Send all weights; gives their fingerprint. Whatever fails at it, all ranks send theirs to the end."""
        push, weights = None, ""
        problem: Exception | None = None
        try:
            if is_main_rank():
                assert self._carrier is not None
                push = WeightPush(self._clients, self._carrier, version)
        except ServerError as error:
            problem = error
        with gathered_weights(self._context.chunks):
            for name, tensor in stream_weights(list(self._context.chunks), self._context.model):
                self._context.on_token()
                if problem is None and push is not None:
                    _, problem = self._attempt(lambda name=name, tensor=tensor: push.add(name, tensor))  # type: ignore[misc]
        if push is not None and problem is None:
            found, problem = self._attempt(push.finish)
            weights = found or ""
        weights, problem = broadcast_object((weights, problem))
        if problem is not None:
            raise problem
        return weights

    def _probe(self, version: str) -> None:
        """Raise ServerError, on all ranks, where a server computes with other weights than the trainer."""
        prompt = np.random.default_rng(0).integers(self._context.model.vocab_size, size=_PROBE_PROMPT).tolist()
        work = (
            (lambda: [self._continue(client, prompt, version) for client in self._clients]) if is_main_rank() else None
        )
        context = self._context
        for url, tokens, log_probs in run_on_one(work, 0, None, context.on_token):
            with gathered_weights(context.chunks):
                known = score_continuation(context.chunks, context.stage.layout, context.device, prompt, tokens)
            if not all(map(math.isfinite, known)):
                raise FloatingPointError(
                    "the model's log-probabilities are not all finite: its weights are damaged, or overflow in bf16; "
                    "start again from the last checkpoint, with a lower learning rate"
                )
            gaps = [abs(one - other) for one, other in zip(log_probs, known, strict=True)]
            limit = _PROBE_LIMITS[self._dtype]
            gap = max(gaps) if self._dtype == torch.float32 else fmean(gaps)
            if not gap <= limit:
                raise ServerError(
                    f"{url} computes with other weights than the trainer: log-probabilities of a fixed prompt differ "
                    f"by {gap:.3g} nats, at most {limit:g} is rounding"
                )

    def _continue(self, client: RolloutClient, prompt: list[int], version: str) -> tuple[str, list[int], list[float]]:
        parameters = self._parameters(Sampling(), 1, _PROBE_TOKENS, seed=0) | {"stop_token_ids": []}
        [response] = client.generate(prompt, parameters, version, version)
        return client.address.url, response.tokens, response.log_probs

    # --- requests

    def _ask_all(
        self, requests: Sequence[GenerationRequest], sampling: Sampling, version: str, known: _Answers
    ) -> Responses:
        """`known` keeps the answers by the branch's number: those that are there are not asked for again."""
        self._send_token_texts(sampling)
        branches = [(request, branch) for request in requests for branch in request.branches]
        servers = self._clients

        def ask(number: int) -> None:
            request, branch = branches[number]
            known[number] = self._ask(servers[number % len(servers)], request, branch, sampling, version)

        with ThreadPoolExecutor(self._at_once(branches)) as pool:
            asked = [pool.submit(ask, number) for number in range(len(branches)) if number not in known]
            try:
                for each in asked:
                    each.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        answered = iter([known[number] for number in range(len(branches))])
        return [[next(answered) for _ in request.branches] for request in requests]

    def _at_once(self, branches: Sequence[tuple[GenerationRequest, RequestBranch]]) -> int:
        """Requests in flight: servers decode them at once, so that none waits there until its time is up."""
        largest = max((len(branch.uniforms) for _, branch in branches), default=1)
        _, replicas = data_rank()
        return max(1, _SEQUENCES_AT_ONCE * len(self._clients) // (max(1, largest) * replicas))

    def _ask(
        self,
        client: RolloutClient,
        request: GenerationRequest,
        branch: RequestBranch,
        sampling: Sampling,
        version: str,
    ) -> list[Response]:
        group_size, max_tokens = branch.uniforms.shape
        prompt = [*request.ids[: branch.position], *branch.instruction]
        self._check_prompt(prompt, max_tokens)
        seed = int(branch.uniforms[0, 0] * (1 << 53)) if branch.uniforms.size else 0
        count = group_size if sampling.temperature else 1  # the likeliest tokens are the same for all
        parameters = self._parameters(sampling, count, max_tokens, seed)
        found = client.generate(prompt, parameters, version, version) * (group_size // count)
        return [
            Response(each.tokens, each.log_probs, each.tokens[-1] in self._context.stop_token_ids) for each in found
        ]

    def _parameters(self, sampling: Sampling, count: int, max_tokens: int, seed: int) -> dict[str, Any]:
        stops = sorted(self._context.stop_token_ids)
        ends_early = isinstance(sampling.ends, AnswerEnd) and stops
        return {
            "n": count,
            "max_tokens": max_tokens,
            "temperature": sampling.temperature,
            "seed": seed,
            "logprobs": 0,
            "stop_token_ids": stops,
            "ignore_eos": True,
            "detokenize": False,
            **({"extra_args": {"end_with": stops[0]}} if ends_early else {}),
        }

    def _check_prompt(self, prompt: Sequence[int], max_tokens: int) -> None:
        """Raise InputError for what vLLM would clip without a word, or die of."""
        longest, vocabulary = self._context.stage.seq_length, self._context.model.vocab_size
        if len(prompt) + max_tokens > longest:
            raise InputError(
                f"a prompt of {len(prompt)} tokens and a response of {max_tokens} exceed seq_length {longest}: raise it"
            )
        if max(prompt, default=0) >= vocabulary:
            raise InputError(f"a prompt has token {max(prompt)}, and the model's vocabulary has {vocabulary}")

    def _send_token_texts(self, sampling: Sampling) -> None:
        """Tell workers, once, by what bytes a response ends with its answer."""
        if self._has_texts or not isinstance(sampling.ends, AnswerEnd):
            return
        texts = [text.hex() for text in sampling.ends.texts]
        for client in self._clients:
            client.call_workers("davinci_take_token_texts", texts)
        self._has_texts = True


def _servers(context: EngineContext, options: VllmRollouts, dtype: str) -> RolloutServers:
    several_machines = len(set(all_gather_object(socket.gethostname()))) > 1
    if options.servers is not None:
        from pathlib import Path

        return GivenServers(Path(options.servers), options.num_servers, options.timeout)
    return StartedServer(
        context.directory,
        options.environment,
        context.model,
        context.stage.seq_length,
        dtype,
        # where torchrun and Slurm have the other ranks meet the first one
        host=node_address(os.environ["MASTER_ADDR"]) if several_machines else LOOPBACK,
        timeout=options.timeout,
        devices=options.devices,
        arguments=options.arguments,
    )
