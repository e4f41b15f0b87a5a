"""A model behind an address: any server with OpenAI's protocol; of vLLM's more is known before it is asked."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

import orjson

from data_prep.agents.model_server import BadRequest, ModelServer, TryAgain
from data_prep.io.errors import DAMAGE, InputError, WorkFailed, describe
from data_prep.io.threads import run_in_threads
from megatron_davinci.evaluate.tasks.task import AnswerText
from megatron_davinci.evaluate.text_models.base import OnAnswer, TextRequest, cut_at_stop
from megatron_davinci.serve.completions import NEUTRAL, CompletionClient

_MOST_STOPS = 4  # that OpenAI's protocol takes; all of them are applied here
_PATIENCE = 600.0


class ServedTexts:
    """`concurrency` requests at a time; `name`: the model's in the server, by default its first."""

    def __init__(self, address: str, concurrency: int, name: str | None = None, api_key: str | None = None) -> None:
        client = CompletionClient(address, name, api_key)
        try:
            self.name, self._context = client.name, client.context_tokens()
        finally:
            client.close()
        self._address, self._concurrency = address.rstrip("/"), concurrency
        self._server = ModelServer(self._address, api_key=api_key)
        self._tokenizer = ModelServer(self._address.removesuffix("/v1"), api_key=api_key)

    def close(self) -> None:
        """See `AnswersTexts`."""
        self._server.close()
        self._tokenizer.close()

    def answer(self, requests: Sequence[TextRequest], on_answer: OnAnswer) -> None:
        """See `AnswersTexts`."""
        told = Lock()

        def one(number: int) -> None:
            found = self._answer(requests[number])
            with told:
                on_answer(number, found)

        run_in_threads(one, range(len(requests)), self._concurrency)

    def _answer(self, request: TextRequest) -> AnswerText:
        tokens = self._prompt_tokens(request) if self._context else None
        if tokens is not None and self._context is not None and tokens + request.max_tokens > self._context:
            return AnswerText("", "no_room", prompt_tokens=tokens)
        return self._posted(
            self._server, _path(request), _body(request, self.name), lambda held: self._read(held, request)
        )

    def _prompt_tokens(self, request: TextRequest) -> int | None:
        """What vLLM counts; it clips silently what does not fit. None where the server cannot count."""
        body = {"model": self.name, **_question(request)}
        try:
            found: int = self._posted(self._tokenizer, "/tokenize", body, lambda held: int(held["count"]), 0.0)
            return found
        except (BadRequest, InputError, WorkFailed):  # no vLLM's
            self._context = None
            return None

    def _posted(
        self, server: ModelServer, path: str, body: Mapping[str, Any], read: Any, patience: float = _PATIENCE
    ) -> Any:
        content = orjson.dumps(body)

        def ask() -> Any:
            answer = server.post(path, content)
            try:
                return read(json.loads(answer))
            except DAMAGE as error:
                raise TryAgain("not_a_reply", f"what it sends is no reply: {describe(error)}", weight=1) from None

        try:
            return server.with_tries(ask, patience, Counter())
        except TryAgain as again:
            raise WorkFailed(f"{self._address} does not answer as OpenAI's protocol has it: {again.reason}") from None
        except BadRequest as bad:
            raise InputError(f"{self._address} refuses a request: {bad.reason}") from None

    def _read(self, held: Any, request: TextRequest) -> AnswerText:
        choice, usage = held["choices"][0], held.get("usage") or {}
        text = _text_of(choice["message"]["content"] if request.chat else choice["text"])
        prompt, answer = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        finish = "length" if choice.get("finish_reason") == "length" else "stop"
        if finish == "length" and 0 < answer < request.max_tokens:
            raise InputError(
                f"{self._address} has clipped an answer at {answer} of {request.max_tokens} tokens: serve the model "
                "with a larger context (--max-model-len)"
            )
        text, finish = cut_at_stop(text, finish, request.stop)
        return AnswerText(text, finish, prompt_tokens=prompt, completion_tokens=answer)


def _text_of(content: Any) -> str:
    """The text of a reply, which some servers send in parts. Raises TypeError for what is none."""
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if part.get("type") == "text")
    if not isinstance(content, str | None):
        raise TypeError(f"its text is a {type(content).__name__}")
    return (content or "").encode("utf-8", "replace").decode()  # half a surrogate pair is no text


def _path(request: TextRequest) -> str:
    return "/chat/completions" if request.chat else "/completions"


def _question(request: TextRequest) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": request.text}]} if request.chat else {"prompt": request.text}


def _body(request: TextRequest, name: str) -> dict[str, Any]:
    seeded = {"seed": request.seed} if request.temperature else {}
    return {
        "model": name,
        **_question(request),
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "stop": list(request.stop[:_MOST_STOPS]),
        **NEUTRAL,
        **seeded,
    }


def served_identity(address: str) -> str:
    """The names that a server gives its model, whatever its address is. Raises InputError where it does not answer."""
    client = CompletionClient(address)
    try:
        return f"served {client.name} {client.root() or ''}".strip()
    finally:
        client.close()
