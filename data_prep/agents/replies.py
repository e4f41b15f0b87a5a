"""A server's reply in OpenAI's protocol, as a message to send back and as calls to run. Servers differ in details."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from data_prep.io.errors import DAMAGE

_REASONING = ("reasoning_content", "reasoning")
_CARRIED = "reasoning_details"  # which some servers want back as they sent it
_MOST_CALLS = 16  # in one reply
_MOST_TOKENS = 1 << 40  # that a server can count


class NotAReply(ValueError):
    """What a server sent is no reply of the protocol."""


@dataclass(frozen=True)
class ToolCall:
    """A call with its arguments as an object."""

    id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Usage:
    """Tokens as the server counts them; 0 where it does not."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total(self) -> int:
        """Tokens of prompt and reply together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class AgentReply:
    """`message` is the assistant's, as the next request has it. `malformed`: why it has no call that can be run;
    `refused`: why the model, or its server, does not want to go on. `seconds`: how long it took."""

    message: dict[str, Any]
    calls: tuple[ToolCall, ...]
    usage: Usage
    malformed: str = ""
    refused: str = ""
    seconds: float = 0.0


def parse_reply(held: Any, number: int) -> AgentReply:
    """The reply in a response's body. `number` makes ids where the server gives none. Raises NotAReply."""
    try:
        choice = held["choices"][0]
        said = choice["message"]
        content = _text(said.get("content"))
        message: dict[str, Any] = {"role": "assistant", "content": content}
        for name in _REASONING:
            if isinstance(said.get(name), str) and said[name]:
                message[name] = said[name]
        if isinstance(said.get(_CARRIED), list):
            message[_CARRIED] = said[_CARRIED]
        calls, malformed = _calls(said, number)
        sent = [_as_sent(call) for call in calls]
        reason = choice.get("finish_reason")
        refusal = said.get("refusal")
    except DAMAGE as error:
        raise NotAReply(f"{type(error).__name__}: {error}") from None
    reason = reason if isinstance(reason, str) else ""
    refused = refusal if isinstance(refusal, str) else "content filter" if reason == "content_filter" else ""
    if refused:
        calls, malformed = [], ""
    elif reason == "length" or malformed or not calls:
        malformed = "the reply was cut off" if reason == "length" else malformed or "the reply calls no tool"
        calls = []
    else:
        message["tool_calls"] = sent
    return AgentReply(message, tuple(calls), _usage(held), malformed, refused)


def _text(content: Any) -> str:
    """A content as one text: plain, none, or in parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type", "text") in ("text", "output_text"))


def _calls(said: Mapping[str, Any], number: int) -> tuple[list[ToolCall], str]:
    """The calls of a message, and why they cannot be run."""
    given = said.get("tool_calls") or []
    if not given and said.get("function_call"):
        given = [{"function": said["function_call"]}]
    if len(given) > _MOST_CALLS:
        return [], f"{len(given)} tools were called at once, and {_MOST_CALLS} can be"
    calls: list[ToolCall] = []
    ids: set[str] = set()
    for place, call in enumerate(given):
        function = call["function"]
        name, arguments = function.get("name"), _arguments(function.get("arguments"))
        if not isinstance(name, str) or not name:
            return [], "a call has no name"
        if arguments is None:
            return [], f"the arguments of {name[:80]} are no JSON object that can be taken"
        id_ = call.get("id")
        if not isinstance(id_, str) or not id_ or id_ in ids:
            id_ = f"call_{number}_{place}"
        ids.add(id_)
        calls.append(ToolCall(id_, name, arguments))
    return calls, ""


def _arguments(given: Any) -> dict[str, Any] | None:
    if isinstance(given, str):
        try:
            given = orjson.loads(given) if given.strip() else {}
        except orjson.JSONDecodeError:
            return None
    given = {} if given is None else given
    try:
        orjson.dumps(given)
    except orjson.JSONEncodeError:  # of more levels than can be written
        return None
    return given if isinstance(given, dict) else None


def _as_sent(call: ToolCall) -> dict[str, Any]:
    arguments = orjson.dumps(dict(call.arguments)).decode()
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _usage(held: Mapping[str, Any]) -> Usage:
    usage = held.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else 0 for name in ("prompt_tokens", "completion_tokens")]
    return Usage(*(count if isinstance(count, int) and 0 <= count < _MOST_TOKENS else 0 for count in counts))
