"""Conversations in the forms that datasets have, brought to the one that chat templates read.

Forms of a record: OpenAI's `messages`, ShareGPT's `conversations`, and `prompt` with `completion`.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]

DEFAULT_KEY = "messages"
CONVERSATION_FIELDS = (DEFAULT_KEY, "conversations", "prompt", "completion")
_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "observation": "tool",
    "function": "tool",
    "function_call": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
_HALF = re.compile("[\ud800-\udfff]")
_TEXT_PARTS = ("text", "input_text", "output_text")


class ConversationError(ValueError):
    """This conversation cannot be rendered, or not be masked with certainty."""


@dataclass(frozen=True)
class ChatConversation:
    """Messages as chat templates read them: each has a role and, as one text, a content; a tool call's arguments are
    an object. `untrained` are the numbers of the assistant's messages whose weight is 0.
    """

    messages: list[Message]
    tools: list[Any] | None = None
    untrained: frozenset[int] = frozenset()

    @property
    def size(self) -> int:
        """Characters of its texts."""
        return sum(len(message["content"]) for message in self.messages)


def conversation_of(record: dict[str, Any], key: str = DEFAULT_KEY) -> ChatConversation:
    """The conversation of a record; with the default key, in whichever form it has one. Raises ConversationError."""
    try:
        said, prompt_messages = _messages_of(record, key)
        messages, weights = [], []
        for number, each in enumerate(said):
            message, weight = _message(each)
            messages.append(message)
            weights.append(0 if number < prompt_messages else weight)
        tools = tools_of(record.get("tools"))
        if any_text([messages, tools], lambda text: _HALF.search(text) is not None):
            raise ConversationError("holds half a character (a lone surrogate), which is no text")
        untrained = frozenset(number for number, weight in enumerate(weights) if weight == 0)
        return ChatConversation(messages, tools, untrained)
    except RecursionError:
        raise ConversationError("is nested too deeply") from None


def _messages_of(record: dict[str, Any], key: str) -> tuple[list[Any], int]:
    """The messages of a record, and how many of them are a prompt, of which nothing is trained."""
    prompt: list[Any] = []
    others = key == DEFAULT_KEY and ("conversations" in record or {"prompt", "completion"} <= record.keys())
    if record.get(key) is not None or (key in record and not others):
        said = _list(record[key], key)
    elif others and record.get("conversations") is not None:
        said = _list(record["conversations"], "conversations")
    elif others and {"prompt", "completion"} <= record.keys():
        prompt = _said_by("user", record["prompt"], "prompt")
        said = _said_by("assistant", record["completion"], "completion")
    else:
        lists = ", ".join(name for name, value in record.items() if isinstance(value, list)) or "none"
        forms = " (nor 'conversations', nor 'prompt' with 'completion')" if key == DEFAULT_KEY else ""
        raise ConversationError(f"has no conversation under '{key}'{forms}; its lists are: {lists}")
    opening = _opening([*prompt, *said], record.get("system"))
    return [*opening, *prompt, *said], len(opening) + len(prompt) if prompt else 0


def _opening(said: list[Any], system: Any) -> list[Any]:
    """A system's message that stands beside the others."""
    if not said or not isinstance(system, str) or not system:
        return []
    first = said[0].get("role", said[0].get("from")) if isinstance(said[0], dict) else None
    return [] if first == "system" else [{"role": "system", "content": system}]


def _said_by(role: str, value: Any, key: str) -> list[Any]:
    """A prompt or a completion: a text, or messages."""
    return [{"role": role, "content": value}] if isinstance(value, str) else _list(value, key)


def _list(value: Any, key: str) -> list[Any]:
    """A list, or one as JSON text, as tables have it; null is an empty one."""
    found = _from_json(value) if isinstance(value, str) else value
    if found is None and value is None:
        return []
    if not isinstance(found, list):
        raise ConversationError(f"holds a {type(value).__name__} under '{key}'; it must be a list of messages")
    return found


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def tools_of(value: Any) -> list[Any] | None:
    """The tools of a record: a list, or one as JSON text, as tables have it. Raises ConversationError."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except ValueError:
            raise ConversationError("has tools that are neither a list nor JSON text") from None
    if value is not None and not isinstance(value, list):
        raise ConversationError(f"has a {type(value).__name__} for tools; it must be a list")
    tools = [_from_json(tool) if isinstance(tool, str) else tool for tool in value or []]
    if not all(isinstance(tool, dict) for tool in tools):
        raise ConversationError("has a tool that is no JSON object")
    return tools or None


def _message(said: Any) -> tuple[Message, int]:
    """A message as templates read it, and its weight: 1 is trained, 0 is not."""
    if not isinstance(said, dict):
        raise ConversationError("holds a message that is no JSON object")
    message = {name: value for name, value in said.items() if name not in _READ_HERE}
    given = said.get("role", said.get("from"))
    if not isinstance(given, str) or not given:
        raise ConversationError("holds a message without a role")
    content = said.get("content", said.get("value"))
    calls = _tool_calls(said, content if given == "function_call" else None)
    message["role"] = _ROLES.get(given, given)
    message["content"] = "" if given == "function_call" else _content(message["role"], content)
    if calls:
        message["tool_calls"] = calls
    if reasoning := _reasoning(said):
        message["reasoning_content"] = reasoning
    return message, _weight(said, message["role"])


_READ_HERE = frozenset(
    {"role", "from", "content", "value", "tool_calls", "function_call", "weight", "reasoning_content", "reasoning",
     "thinking"}
)  # fmt: skip


def _reasoning(said: Message) -> str:
    """What the assistant thought, under one of the names that servers give it."""
    given = [said[name] for name in ("reasoning_content", "reasoning", "thinking") if said.get(name)]
    if not all(isinstance(each, str) for each in given):
        raise ConversationError("has a reasoning that is no text")
    if len(set(given)) > 1:
        raise ConversationError("has two reasonings that differ")
    return given[0] if given else ""


def _weight(said: Message, role: str) -> int:
    weight = said.get("weight")
    if weight is None:
        return 1
    if isinstance(weight, bool) or weight not in (0, 1):
        raise ConversationError(f"has a message of weight {weight!r}; a weight is 0 or 1")
    if weight == 1 and role != "assistant":
        raise ConversationError(f"has weight 1 on a message of the role {role}: only the assistant's are trained")
    return int(weight)


def _content(role: str, content: Any) -> str:
    """A message's content as one text: plain, in parts, or none, as the assistant's and tools' messages may have it."""
    if isinstance(content, str):
        return content
    if content is None and role in ("assistant", "tool"):
        return ""
    if not isinstance(content, list):
        raise ConversationError(f"has a message of the role {role} whose content is {_kind(content)}, no text")
    return "".join(map(_part, content))


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    text = part.get("text") if isinstance(part, dict) and part.get("type", "text") in _TEXT_PARTS else None
    if not isinstance(text, str):
        kind = part.get("type") if isinstance(part, dict) else _kind(part)
        raise ConversationError(f"has a part of a message that is no text: {kind}")
    return text


def _kind(value: Any) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


def _tool_calls(said: Message, as_content: Any) -> list[Any]:
    """The calls of a message: `tool_calls`, the older `function_call`, or ShareGPT's, which is the content."""
    calls = said.get("tool_calls") or []
    if isinstance(calls, str):
        calls = _from_json(calls)
    if not isinstance(calls, list):
        raise ConversationError("has tool calls that are no list")
    older = said.get("function_call") if as_content is None else _from_json(str(as_content))
    if as_content is not None and not older:
        raise ConversationError("has a function_call that is no JSON of a call")
    return [tool_call(call) for call in [*calls, *(older if isinstance(older, list) else [older] if older else [])]]


def tool_call(call: Any) -> dict[str, Any]:
    """A tool call with its arguments as an object, as templates write them. Raises ConversationError."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ConversationError("has a tool call without a function's name")
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):  # servers send them so
        arguments = _from_json(arguments) if arguments.strip() else {}
    elif arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise ConversationError("has a tool call whose arguments are no JSON object")
    beside = {name: call[name] for name in ("id",) if call.get(name) is not None}
    return {**beside, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def any_text(value: Any, found: Callable[[str], bool]) -> bool:
    """Whether `found` is true of some string of a JSON value, keys included."""
    pending = [value]
    while pending:
        at = pending.pop()
        if isinstance(at, str):
            if found(at):
                return True
        elif isinstance(at, dict):
            pending += [*at, *at.values()]
        elif isinstance(at, list):
            pending += at
    return False
