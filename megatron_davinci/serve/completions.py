"""Questions to a server that speaks OpenAI's protocol: texts, or ids where it is vLLM. Torch-free."""

import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson

from data_prep import InputError, WorkFailed
from data_prep.io.errors import describe, printable

_CONNECT_SECONDS, _ANSWER_SECONDS = 10.0, 1800.0


# A server fills what is not said from the model's generation_config.json: penalties change even the likeliest token.
NEUTRAL = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


def _sampling(max_tokens: int, temperature: float) -> dict[str, Any]:
    """At temperature 0 the likeliest token, whatever the model's own settings."""
    return {"max_tokens": max_tokens, "temperature": temperature, **({} if temperature else NEUTRAL)}


class CompletionClient:
    """One model of a server; `url` ends in /v1. The key is OPENAI_API_KEY's, where there is one."""

    def __init__(self, url: str, name: str | None = None, api_key: str | None = None) -> None:
        self.url = url.rstrip("/")
        if "@" in urlsplit(self.url).netloc:
            raise InputError("an address with a password in it would be written down: give the key as OPENAI_API_KEY")
        key = os.environ.get("OPENAI_API_KEY") if api_key is None else api_key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        here = (urlsplit(self.url).hostname or "") in ("127.0.0.1", "::1", "localhost")
        timeout = httpx.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS)
        self._http = httpx.Client(
            headers=headers, timeout=timeout, limits=httpx.Limits(max_connections=None), trust_env=not here
        )
        self._key = key
        self.name = name or self._first_model()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def complete_text(self, prompt: str, max_tokens: int, temperature: float) -> str:
        """The text that follows a prompt."""
        how = _sampling(max_tokens, temperature)
        choice = self._choice("/completions", {"prompt": prompt, **how})
        return str(choice.get("text") or "")

    def chat(self, message: str, max_tokens: int, temperature: float) -> str:
        """The answer to one message, by the model's chat template."""
        messages = [{"role": "user", "content": message}]
        choice = self._choice("/chat/completions", {"messages": messages, **_sampling(max_tokens, temperature)})
        message_back = choice.get("message")
        return str((message_back or {}).get("content") or "") if isinstance(message_back, dict) else ""

    def complete_ids(
        self, prompt: Sequence[int], max_tokens: int, temperature: float, seed: int, stop_token_ids: Sequence[int]
    ) -> tuple[list[int], list[float]]:
        """Ids that follow ids, with the log-probability of each in nats. Raises WorkFailed where it is not vLLM."""
        body = {
            "prompt": list(prompt),
            **_sampling(max_tokens, temperature),
            **NEUTRAL,
            "seed": seed,
            "logprobs": 0,
            "stop_token_ids": list(stop_token_ids),
            "ignore_eos": True,
            "skip_special_tokens": False,
            "return_token_ids": True,
        }
        choice = self._choice("/completions", body)
        ids, scored = choice.get("token_ids"), choice.get("logprobs")
        log_probs = scored.get("token_logprobs") if isinstance(scored, dict) else None
        if not isinstance(ids, list) or not isinstance(log_probs, list) or len(ids) != len(log_probs):
            raise WorkFailed(f"{self.url} gives no ids with log-probabilities: serve the model with davinci serve")
        if len(ids) < max_tokens and (not ids or ids[-1] not in stop_token_ids):
            raise WorkFailed(
                f"{self.url} has clipped a response at {len(ids)} of {max_tokens} tokens: serve the model with a "
                "larger --max-model-len"
            )
        return ids, [min(0.0, value) for value in log_probs]

    def context_tokens(self) -> int | None:
        """How many tokens prompt and answer may have together, None where the server does not say."""
        said = self._described().get("max_model_len")
        return said if isinstance(said, int) else None

    def root(self) -> str | None:
        """What the model's name stands for, as vLLM says; None where the server does not."""
        said = self._described().get("root")
        return said if isinstance(said, str) else None

    def _described(self) -> dict[str, Any]:
        """What /models says of the model."""
        found = self._call("GET", "/models", None)
        listed = found.get("data") if isinstance(found, dict) else None
        named = (each for each in listed or () if isinstance(each, dict) and each.get("id") == self.name)
        return next(named, {})

    def _first_model(self) -> str:
        found = self._call("GET", "/models", None)
        try:
            return str(found["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise InputError(f"{self.url}/models names no model: give the address that ends in /v1") from None

    def _choice(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        found = self._call("POST", path, {"model": self.name, **body})
        try:
            choice = found["choices"][0]
        except (KeyError, IndexError, TypeError):
            choice = None
        if not isinstance(choice, dict):
            raise WorkFailed(f"{self.url}{path} answers, but not as OpenAI's protocol has it")
        return choice

    def _call(self, method: str, path: str, body: Any) -> Any:
        content = None if body is None else orjson.dumps(body)
        try:
            answer = self._http.request(
                method, self.url + path, content=content, headers={"Content-Type": "application/json"}
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise InputError(f"{self.url}{path} does not answer ({describe(error)}): is the server there?") from None
        if answer.status_code != 200:
            said = answer.text if not self._key else answer.text.replace(self._key, "***")
            raise InputError(f"{self.url}{path} refuses: status {answer.status_code}, {printable(said, 300)}")
        try:
            return orjson.loads(answer.content)
        except orjson.JSONDecodeError:
            raise InputError(
                f"{self.url}{path} answers with what is no JSON: give the address that ends in /v1"
            ) from None
