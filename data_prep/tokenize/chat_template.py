"""Conversations to text by a model's chat template, and which of it the assistant wrote.

A conversation is rendered once. While it is text, each control token that the template writes is one noncharacter of
Unicode, put into the template's own literals: a message, a tool or a role cannot write one, whatever it holds and
wherever the template cuts it.
"""

import itertools
import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from data_prep.io.errors import InputError
from data_prep.tokenize.conversation import ConversationError, any_text

_NONCHARACTERS = [
    *map(chr, range(0xFDD0, 0xFDF0)),
    *(chr(plane << 16 | low) for plane in range((sys.maxunicode >> 16) + 1) for low in (0xFFFE, 0xFFFF)),
]
_ANY_NONCHARACTER = re.compile(f"[{''.join(_NONCHARACTERS)}]")
_BREAK, BLOCK_START, BLOCK_END, *_FOR_TOKENS = _NONCHARACTERS
_QUESTION = {"role": "user", "content": "Question"}
_ANSWER = {"role": "assistant", "content": "Answer"}


class _GenerationBlock(Extension):
    """{% generation %}: where a template says itself what the assistant writes."""

    tags = {"generation"}  # noqa: RUF012, Jinja declares it so

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Any) -> str:
        return f"{BLOCK_START}{caller()}{BLOCK_END}"


@dataclass
class TokenMarks:
    """Which noncharacter stands for which control token. `formed` are those that the template puts together from
    pieces, such as '<|' + role + '|>': they are found in its output, and broken up in what goes in.
    """

    tokens: Mapping[str, int]
    formed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._any = _any_of(self.tokens)
        self._mark_of: dict[str, str] = {}
        self.token_of: dict[str, str] = {}

    def put_into(self, text: str) -> str:
        """A text with every control token as its mark. Raises InputError for more tokens than there are marks."""
        return self._any.sub(lambda match: self._mark(match[0]), text)

    def _mark(self, token: str) -> str:
        if token not in self._mark_of:
            if len(self._mark_of) == len(_FOR_TOKENS):
                raise InputError(f"the chat template names more than {len(_FOR_TOKENS)} control tokens")
            mark = _FOR_TOKENS[len(self._mark_of)]
            self._mark_of[token], self.token_of[mark] = mark, token
        return self._mark_of[token]

    def find_formed(self, text: str) -> str:
        """Text of the template with marks for the tokens that it formed, and without what broke others up."""
        if self.formed:
            text = _any_of(self.formed).sub(lambda match: self._mark(match[0]), text)
        return text.replace(_BREAK, "")

    def broken_up(self, value: Any) -> Any:
        """A value with the formed tokens' first and last characters set apart in all its strings."""
        if not self.formed:
            return value
        if isinstance(value, str):
            first, last = ({token[at] for token in self.formed} for at in (0, -1))
            after = re.sub(f"([{re.escape(''.join(first))}])", rf"\1{_BREAK}", value)
            return re.sub(f"([{re.escape(''.join(last))}])", rf"{_BREAK}\1", after)
        if isinstance(value, list):
            return [self.broken_up(item) for item in value]
        if isinstance(value, dict):
            return {name: item if name == "role" else self.broken_up(item) for name, item in value.items()}
        return value


class ChatTemplate:
    """A Jinja chat template, run in a sandbox; `render` gives text with marks for control tokens (see TokenMarks).

    `variables` are what the template may name beside the conversation: bos_token and its like. Raises InputError for a
    template that is no Jinja.
    """

    def __init__(
        self, source: str, control_tokens: Mapping[str, int], variables: Mapping[str, str] | None = None
    ) -> None:
        self.marks = TokenMarks(control_tokens)
        self.says_itself = re.search(r"{%-?\s*generation\s*-?%}", source) is not None
        self.names_developer = "developer" in source
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
        )
        # As transformers defines them; a template that asks for today's date gets none, so that it renders the same.
        environment.filters["tojson"] = _to_json
        beside = {name: self.marks.put_into(text) for name, text in (variables or {}).items()}
        environment.globals |= {**beside, "raise_exception": _refuse}
        try:
            tree = environment.parse(source)
            self._mark_literals(tree)
            self._template = environment.from_string(tree)
        except jinja2.TemplateError as error:
            raise InputError(f"the chat template is not Jinja: {error}") from None
        self.marks.formed = self._formed_tokens(control_tokens)

    def _mark_literals(self, tree: nodes.Template) -> None:
        for data in tree.find_all(nodes.TemplateData):
            data.data = self.marks.put_into(data.data)
        for constant in tree.find_all(nodes.Const):
            if isinstance(constant.value, str):
                constant.value = self.marks.put_into(constant.value)

    def _formed_tokens(self, control_tokens: Iterable[str]) -> set[str]:
        try:
            text = self.render([_QUESTION, _ANSWER, _QUESTION], prompt=True)
        except ConversationError:
            return set()  # whoever renders more says what is wrong
        return set(_any_of(control_tokens).findall(text))

    def render(self, messages: list[Any], tools: list[Any] | None = None, prompt: bool = False) -> str:
        """A conversation as text with marks. Raises ConversationError."""
        if any_text([messages, tools], lambda text: _ANY_NONCHARACTER.search(text) is not None):
            raise ConversationError("holds noncharacters of Unicode (such as U+FDD0), which are needed as marks")
        try:
            given = {"messages": self.marks.broken_up(messages), "tools": self.marks.broken_up(tools)}
            return self.marks.find_formed(self._template.render(**given, add_generation_prompt=prompt))
        except RecursionError:
            raise ConversationError("is nested too deeply") from None
        except Exception as error:  # a template is somebody's program: what ends it is this conversation's fault alone
            raise ConversationError(f"does not fit the chat template: {error}") from None


@dataclass(frozen=True)
class TurnMarkers:
    """What stands before and after what the assistant writes. `closing` ends a turn; where the template has none, one
    of `stops` does, which begin the turns of others. `role` is the first mark of the header.
    """

    header: str
    closing: str
    role: str
    stops: frozenset[str]


def find_turn_markers(template: ChatTemplate) -> TurnMarkers:
    """The markers, as small conversations show them. Raises InputError for a template without a control token there."""
    try:
        between = template.render([_QUESTION, _ANSWER, _QUESTION, _ANSWER])
        first_turn, last_turn = (part.rpartition("Question")[2] for part in between.split("Answer")[:2])
        prompt = template.render([_QUESTION], prompt=True).rpartition("Question")[2]
        after_question = template.render([_QUESTION]).rpartition("Question")[2]
        after_first, after_last = between.split("Answer")[1:3]
    except (ConversationError, ValueError) as error:
        raise InputError(f"the chat template does not render a plain conversation: {error}") from None
    header = _common_prefix(prompt, first_turn, last_turn)
    header = header[len(_common_prefix(header, after_question)) :]
    role = _first_mark(template, header)
    if not role:
        raise InputError(
            f"the chat template begins the assistant's turns with {header!r}, which holds no control token of this "
            "tokenizer: give the template of the tokenizer's own model, or one with {% generation %} blocks"
        )
    closing = after_last[:1] if after_last[:1] in template.marks.token_of and after_first[:1] == after_last[:1] else ""
    stops = {_first_mark(template, after_first), _after_tool_call(template, header)} - {"", role}
    return TurnMarkers(header, closing, role, frozenset() if closing else frozenset(stops))


def _after_tool_call(template: ChatTemplate, header: str) -> str:
    """The mark that ends a turn with a tool call: the one that opens the tool's answer."""
    call = {"type": "function", "function": {"name": "run", "arguments": {"a": "b"}}}
    messages = [_QUESTION, {**_ANSWER, "tool_calls": [call]}, {"role": "tool", "content": "Result"}]
    try:
        return _first_mark(template, template.render(messages).partition(header)[2])
    except ConversationError:
        return ""  # a template without tools


def _first_mark(template: ChatTemplate, text: str) -> str:
    return next((character for character in text if character in template.marks.token_of), "")


def _common_prefix(*texts: str) -> str:
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    return "".join(letters[0] for letters in same)


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the tokens, the longest where several begin; nothing where there are none."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **others: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **others)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
