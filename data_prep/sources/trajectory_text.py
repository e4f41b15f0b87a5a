"""Trajectories as text alone, as daVinci-Dev publishes its own: calls as <function=...> with <parameter=...>, thoughts
in <think>, what tools answer as turns of the user. For models whose chat template knows no tools."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_prep.sources.trajectory_rules import as_json_text
from data_prep.tokenize.conversation import Message

_MARKUP = re.compile(r"</?(?:function|parameter)\b")
_CALL = re.compile(r"<function=([^>\n]+)>\n((?:<parameter=[^>\n]+>.*?</parameter>\n)*)</function>", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>(.*?)</parameter>\n", re.DOTALL)


class NotTextual(ValueError):
    """A conversation cannot be written as text without doubt."""


def as_text_messages(messages: Sequence[Message], tools: Sequence[Any] | None) -> list[Message]:
    """A conversation as texts alone. Raises NotTextual where a value holds the markup of a call."""
    found: list[Message] = []
    for message in messages:
        role = message["role"]
        if role == "tool":
            if found and found[-1].get("of_tools"):
                found[-1]["content"] += f"\n\n{message['content']}"
            else:
                found.append({"role": "user", "content": message["content"], "of_tools": True})
        elif role == "assistant":
            weight = {"weight": message["weight"]} if "weight" in message else {}
            found.append({"role": role, "content": _said(message), **weight})
        else:
            found.append(dict(message))
    for message in found:
        message.pop("of_tools", None)
    return _with_tools(found, tools or ())


def calls_in(text: str) -> list[tuple[str, dict[str, str]]]:
    """The calls of a text, read back: name, and values by parameter, as text."""
    return [(name, dict(_PARAMETER.findall(body))) for name, body in _CALL.findall(text)]


def _said(message: Message) -> str:
    thought = message.get("reasoning_content")
    parts = [f"<think>\n{thought}\n</think>"] if thought else []
    calls = message.get("tool_calls") or []
    if calls and _MARKUP.search(f"{thought or ''}{message['content']}"):
        raise NotTextual("a text beside a call holds the markup of one")
    parts += [message["content"]] if message["content"] else []
    return "\n\n".join([*parts, *(_call(call["function"]) for call in calls)])


def _call(function: Mapping[str, Any]) -> str:
    lines = [f"<function={function['name']}>"]
    for name, value in function["arguments"].items():
        text = as_json_text(value)
        if _MARKUP.search(text) or ">" in name or "\n" in name:
            raise NotTextual("an argument holds the markup of a call")
        lines.append(f"<parameter={name}>{text}</parameter>")
    return "\n".join([*lines, "</function>"])


def _with_tools(messages: list[Message], tools: Sequence[Any]) -> list[Message]:
    """The tools told in the system's message, for no template does it."""
    if not tools:
        return messages
    told = "\n".join(
        ["You can call these functions:", "", *(line for tool in tools for line in _described(tool)), _HOW]
    )
    if messages and messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{told}"}, *messages[1:]]
    return [{"role": "system", "content": told}, *messages]


_HOW = """Write a call so:
<function=NAME>
<parameter=NAME>VALUE</parameter>
</function>"""


def _described(tool: Mapping[str, Any]) -> Iterator[str]:
    function = tool.get("function", tool)
    yield f"{function.get('name')}: {function.get('description') or ''}".rstrip()
    properties = (function.get("parameters") or {}).get("properties") or {}
    required = (function.get("parameters") or {}).get("required") or ()
    for name, value in properties.items():
        need = "required" if name in required else "optional"
        said = value if isinstance(value, dict) else {}
        yield f"  {name} ({said.get('type', 'any')}, {need}): {said.get('description') or ''}".rstrip()
    yield ""
