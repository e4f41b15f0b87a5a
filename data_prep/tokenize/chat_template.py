"""Conversations to text by a model's chat template, and which of it the assistant wrote.

A conversation is rendered once. While it is text, each control token that the template writes is one noncharacter of
Unicode, put into the template's own literals: a message or a tool cannot write one, whatever it holds and wherever the
template cuts it. A role can, where a template forms tokens of roles; the turns that it adds make its record broken.
"""

import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
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
_ASKED, _SAID = "Question7f3a", "Answer7f3a"  # words that no template writes
_QUESTION = {"role": "user", "content": _ASKED}
_ANSWER = {"role": "assistant", "content": _SAID}


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
        """A value without formed tokens in its strings, nor a part of one at their ends."""
        if not self.formed:
            return value
        if isinstance(value, str):
            return self._broken_up(value)
        if isinstance(value, list):
            return [self.broken_up(item) for item in value]
        if isinstance(value, dict):
            return {name: item if name == "role" else self.broken_up(item) for name, item in value.items()}
        return value

    def _broken_up(self, text: str) -> str:
        text = _any_of(self.formed).sub(lambda match: f"{match[0][0]}{_BREAK}{match[0][1:]}", text)
        lengths = [length for token in self.formed for length in range(1, len(token))]
        for length in sorted(set(lengths), reverse=True):
            if any(text.endswith(token[:length]) for token in self.formed if length < len(token)):
                text = f"{text}{_BREAK}" if length == 1 else f"{text[: 1 - length]}{_BREAK}{text[1 - length :]}"
                break
        for length in sorted(set(lengths), reverse=True):
            if any(text.startswith(token[-length:]) for token in self.formed if length < len(token)):
                return f"{_BREAK}{text}" if length == 1 else f"{text[: length - 1]}{_BREAK}{text[length - 1 :]}"
        return text


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
        looked_for = set(map(id, _looked_for(tree)))
        for constant in tree.find_all(nodes.Const):
            if isinstance(constant.value, str) and id(constant) not in looked_for:
                constant.value = self.marks.put_into(constant.value)

    def _formed_tokens(self, control_tokens: Iterable[str]) -> set[str]:
        """Control tokens in small conversations with each role that are not from the template's literals."""
        others = [{"role": role, "content": "x"} for role in ("system", "tool")]
        found: set[str] = set()
        for messages in ([_QUESTION, _ANSWER, _QUESTION], [others[0], _QUESTION], [_QUESTION, _ANSWER, others[1]]):
            with suppress(ConversationError):  # whoever renders more says what is wrong
                found |= set(_any_of(control_tokens).findall(self.render(messages, prompt=True)))
        return found

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


def _looked_for(tree: nodes.Template) -> Iterator[nodes.Const]:
    """The texts that a template looks for in messages, and does not write: of comparisons, and of methods of texts."""
    for comparison in tree.find_all(nodes.Compare):
        yield from comparison.find_all(nodes.Const)
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr) and call.node.attr not in ("append", "format", "join"):
            for argument in call.args:
                yield from argument.find_all(nodes.Const) if not isinstance(argument, nodes.Const) else [argument]


@dataclass(frozen=True)
class TurnMarkers:
    """What stands before and after what the assistant writes. One of `closings` ends a turn; where the template has
    none, one of `stops` does, which begin the turns of others. `role` is the first mark of the header.
    """

    header: str
    closings: frozenset[str]
    role: str
    stops: frozenset[str]


class NoTurnMarkers(InputError):
    """The template shows no control token before the assistant's turns; `written` is what it writes around them."""

    def __init__(self, message: str, written: str) -> None:
        super().__init__(message)
        self.written = written


def find_turn_markers(template: ChatTemplate) -> TurnMarkers:
    """The markers, as small conversations show them. Raises InputError for a template without a control token there."""
    try:
        between = template.render([_QUESTION, _ANSWER, _QUESTION, _ANSWER])
        first_turn, last_turn = (part.rpartition(_ASKED)[2] for part in between.split(_SAID)[:2])
        prompt = template.render([_QUESTION], prompt=True).rpartition(_ASKED)[2]
        after_question = template.render([_QUESTION]).rpartition(_ASKED)[2]
        after_first, after_last = between.split(_SAID)[1:3]
    except (ConversationError, ValueError) as error:
        raise InputError(f"the chat template does not render a plain conversation: {error}") from None
    header = _common_prefix(prompt, first_turn, last_turn)
    header = header[len(_common_prefix(header, after_question)) :]
    role = _first_mark(template, header)
    if not role:
        raise NoTurnMarkers(
            f"the chat template begins the assistant's turns with {header!r}, which holds no control token of this "
            "tokenizer: give the template of the tokenizer's own model, or one with {% generation %} blocks",
            between,
        )
    last = after_last[:1] if after_last[:1] in template.marks.token_of else ""
    closings = {mark for mark in (after_first[:1], last) if last and mark in template.marks.token_of}
    stops = {_first_mark(template, after_first), _after_tool_call(template, header)} - {"", role}
    return TurnMarkers(header, frozenset(closings), role, frozenset() if closings else frozenset(stops))


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
