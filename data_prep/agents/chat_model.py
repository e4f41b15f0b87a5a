"""A model behind any server that speaks OpenAI's protocol, asked for one reply after the other.

What is worth another try is tried again, and counted: a busy server, one that is gone for a while, a body that is cut
off or no reply. What is not ends the conversation (`ConversationEnded`), where the server answers another one; else it
ends the command (`InputError`), which goes on where it was when it is started again.
"""

import re
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from data_prep.agents.model_server import BadRequest, ModelServer, TryAgain
from data_prep.agents.replies import AgentReply, NotAReply, parse_reply
from data_prep.io.errors import InputError, describe

_LEAST_REPLY = 256  # tokens; where even that does not fit, the context is full
_FULL = re.compile(
    r"context.{0,3}(?:length|window|size)|maximum context|prompt is too long|too many tokens|"
    r"(?:input|prompt|request|messages).{0,40}(?:too long|exceed)|token limit",
    re.IGNORECASE,
)
_PROBE = [{"role": "user", "content": "Say yes."}]
_PROBE_TOKENS = 16


class ConversationEnded(Exception):
    """The server does not go on with this conversation. `status`: context, refused, server."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass(frozen=True)
class ModelSettings:
    """What every request has. `reply_tokens`: most of one reply. `request`: more fields of it, such as top_p; one that
    is None is not sent."""

    model: str
    temperature: float = 0.0
    reply_tokens: int = 16_384
    request: Mapping[str, Any] = field(default_factory=dict)


class ChatModel:
    """Used by many threads. `patience`: seconds to wait for a server that is gone, or busy."""

    def __init__(self, server: ModelServer, settings: ModelSettings, patience: float = 600.0) -> None:
        self._server, self._settings, self._patience = server, settings, patience
        self._gone: InputError | None = None
        self._probing = threading.Lock()

    def close(self) -> None:
        """Close all connections."""
        self._server.close()

    def reply(
        self, messages: Sequence[Any], tools: Sequence[Any], number: int, room: int, events: "Counter[str]"
    ) -> AgentReply:
        """The next message; `room`: tokens that it may have, `number`: of the reply in the conversation.

        What had to be tried again is counted in `events`. Raises ConversationEnded and InputError.
        """
        if self._gone is not None:
            raise self._gone
        try:
            return self._until_it_fits(messages, tools, number, room, events)
        except ConversationEnded as end:
            if end.status != "context":
                self._probe(tools, end.reason)
            raise

    def _probe(self, tools: Sequence[Any], reason: str) -> None:
        """Raise InputError where the server does not answer a conversation that nobody could mind either."""
        with self._probing:
            try:
                self._with_tries(_PROBE, tools, 0, _PROBE_TOKENS, Counter())
            except ConversationEnded:
                raise self._server.refusal(f"ends every conversation ({reason})") from None

    def _until_it_fits(
        self, messages: Sequence[Any], tools: Sequence[Any], number: int, room: int, events: "Counter[str]"
    ) -> AgentReply:
        most = max(1, min(self._settings.reply_tokens, room))
        while True:
            try:
                return self._with_tries(messages, tools, number, most, events)
            except ConversationEnded as end:
                if end.status != "context" or most < _LEAST_REPLY:
                    raise
                most //= 2  # some servers refuse what prompt and reply together could be
                events["shorter_reply"] += 1

    def _with_tries(
        self, messages: Sequence[Any], tools: Sequence[Any], number: int, most: int, events: "Counter[str]"
    ) -> AgentReply:
        body = {
            "model": self._settings.model,
            "messages": messages,
            "tools": tools,
            "temperature": self._settings.temperature,
            "max_tokens": most,
            **self._settings.request,
        }
        content = orjson.dumps({name: value for name, value in body.items() if value is not None})
        try:
            return self._server.with_tries(lambda: self._ask(content, number), self._patience, events)
        except TryAgain as again:
            raise ConversationEnded("server", again.reason) from None
        except InputError as gone:
            self._gone = gone
            raise

    def _ask(self, content: bytes, number: int) -> AgentReply:
        started = time.monotonic()
        try:
            body = self._server.post("/chat/completions", content)
        except BadRequest as bad:
            full = bad.status == 413 or (bad.status in (400, 422) and _FULL.search(bad.reason))
            raise ConversationEnded("context" if full else "refused", bad.reason) from None
        try:
            return replace(parse_reply(orjson.loads(body), number), seconds=time.monotonic() - started)
        except (orjson.JSONDecodeError, NotAReply) as error:
            raise TryAgain("not_a_reply", f"what it sends is no reply: {describe(error)}", weight=1) from None
