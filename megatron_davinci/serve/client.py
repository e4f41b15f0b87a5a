"""What a rollout server is asked, over HTTP, and what it may answer. Torch-free.

vLLM answers with status 200 where it has not done what was asked: each answer is looked at. Every call has a time
limit.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import orjson

from data_prep import InputError, WorkFailed
from data_prep.io.errors import describe, printable
from data_prep.io.files import part_of, publish, read_json

_CONNECT_SECONDS = 10.0
_ROUNDING = 1e-3  # nats above 0
_WORKER_ERROR = re.compile(r"Worker failed with error '(.*)', please check")


class ServerError(WorkFailed):
    """A server does not answer, or not what it must: nothing that it has said of this is used."""


@dataclass(frozen=True)
class ServerAddress:
    """Where a server is, and the token that it wants; `host`: the name of its machine."""

    url: str
    token: str
    host: str

    def write(self, path: Path) -> None:
        """Give the address to who may read the file: its owner alone."""
        part = part_of(path)
        part.unlink(missing_ok=True)
        with open(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:  # noqa: PTH123
            file.write(orjson.dumps(asdict(self)))
        publish(part, path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises InputError for what is no such file."""
        held = read_json(path)
        names = cls.__dataclass_fields__
        if not isinstance(held, dict) or not all(isinstance(held.get(name), str) for name in names):
            raise InputError(f"{path} is no address of a rollout server: davinci rollout serve writes one")
        return cls(**{name: held[name] for name in names})


@dataclass(frozen=True)
class GeneratedResponse:
    """`log_probs` in nats, at the temperature."""

    tokens: list[int]
    log_probs: list[float]


class RolloutClient:
    """One server; threads may share it. `timeout` in seconds, for a call; ids below `vocab_size` alone are believed."""

    def __init__(self, address: ServerAddress, timeout: float, vocab_size: int = 1 << 31) -> None:
        self.address, self._vocab_size = address, vocab_size
        self._http = httpx.Client(
            base_url=address.url,
            headers={"Authorization": f"Bearer {address.token}"},
            timeout=httpx.Timeout(timeout, connect=_CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=256),
            trust_env=False,  # a proxy of the environment's is for other machines
        )

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def post(self, path: str, body: Any = None) -> Any:
        """The body of the answer, parsed. Raises ServerError."""
        return self._call("POST", path, body)

    def get(self, path: str) -> Any:
        """The body of the answer, parsed. Raises ServerError."""
        return self._call("GET", path, None)

    def call_workers(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of every worker; gives what each returns."""
        found = self.post("/collective_rpc", {"method": method, "args": list(arguments)})
        if not isinstance(found, dict) or not isinstance(found.get("results"), list):
            raise self._error(f"/collective_rpc {method}", "no results")
        return list(found["results"])

    def is_up(self) -> bool:
        """Whether it answers at all."""
        try:
            self.get("/health")
        except ServerError:
            return False
        return True

    def version(self) -> str:
        """Which vLLM it is."""
        found = self.get("/version")
        return str(found.get("version")) if isinstance(found, dict) else ""

    def generate(
        self, prompt: Sequence[int], parameters: Mapping[str, Any], weights: str, salt: str
    ) -> list[GeneratedResponse]:
        """`parameters["n"]` responses in their order. Raises ServerError where one is not whole, or does not come from
        the weights of version `weights`. `salt`: no cache of another salt is used."""
        body = {"token_ids": list(prompt), "sampling_params": dict(parameters), "cache_salt": salt}
        found = self.post("/inference/v1/generate", body)
        try:
            choices = sorted(found["choices"], key=lambda choice: choice["index"])
            responses = [self._response(choice, weights, parameters) for choice in choices]
        except (KeyError, TypeError, AttributeError) as error:
            raise self._error("/inference/v1/generate", f"an answer of another form ({describe(error)})") from None
        if len(responses) != parameters["n"]:
            raise self._error("/inference/v1/generate", f"{len(responses)} responses, {parameters['n']} were asked for")
        return responses

    def _response(self, choice: Mapping[str, Any], weights: str, parameters: Mapping[str, Any]) -> GeneratedResponse:
        path, tokens, reason = "/inference/v1/generate", choice["token_ids"], choice["finish_reason"]
        versions = {span["version"] for span in choice["weight_versions"] or ()}
        if versions != {weights}:
            raise self._error(path, f"a response by weights {sorted(map(str, versions))}, not {weights}")
        scored = choice["logprobs"]["content"]
        if not all(type(each) is int and 0 <= each < self._vocab_size for each in tokens):
            raise self._error(path, f"a response with what is no id below {self._vocab_size}")
        if [each["token_id"] for each in scored] != tokens or not tokens:
            raise self._error(path, "log-probabilities of other tokens than the response has")
        log_probs = [each["logprob"] for each in scored]
        if not all(type(each) in (float, int) and each <= _ROUNDING for each in log_probs):
            raise self._error(path, "a log-probability that is none")
        stops = parameters["stop_token_ids"]
        if len(tokens) > parameters["max_tokens"] or any(each in stops for each in tokens[:-1]):
            raise self._error(path, "a response that goes on behind its end")
        if reason not in ("stop", "length"):
            raise self._error(path, f"a response that ended with {reason!r}")
        if reason == "length" and len(tokens) != parameters["max_tokens"]:
            raise self._error(path, f"a response clipped at {len(tokens)} of {parameters['max_tokens']} tokens")
        if reason == "stop" and tokens[-1] not in stops:
            raise self._error(path, "a response that has ended without a stop token")
        return GeneratedResponse(tokens, [min(0.0, each) for each in log_probs])

    def _call(self, method: str, path: str, body: Any) -> Any:
        content = None if body is None else orjson.dumps(body)
        headers = {"Content-Type": "application/json"}
        try:
            answer = self._http.request(method, path, content=content, headers=headers)
        except httpx.TimeoutException:
            raise self._error(path, "no answer in time") from None
        except httpx.HTTPError as error:
            raise self._error(path, describe(error)) from None
        if answer.status_code != 200:
            raise self._error(path, f"status {answer.status_code}: {_reason(answer.text)}")
        try:
            return orjson.loads(answer.content) if answer.content else None
        except orjson.JSONDecodeError:
            raise self._error(path, "what is no JSON") from None

    def _error(self, path: str, what: str) -> ServerError:
        return ServerError(f"{self.address.url}{path}: {what}")


def _reason(text: str) -> str:
    """The worker's own words, where vLLM repeats them; else all of the answer."""
    found = _WORKER_ERROR.search(text)
    return printable(text if found is None else found[1], 300)


def read_addresses(directory: Path) -> list[ServerAddress]:
    """The addresses that servers have written, some of which may have ended since."""
    paths = sorted(directory.glob("*.json")) if directory.is_dir() else []
    return [ServerAddress.read(path) for path in paths]
