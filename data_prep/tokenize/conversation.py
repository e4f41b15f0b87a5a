"""Conversations to text by a model's chat template, and which of it the assistant wrote.

The whole conversation is rendered once. Control tokens count only where the template wrote them: in a message they stay
text. Marks for this are noncharacters of Unicode (U+FDD0...), which the conversation must not hold.
"""

import itertools
import json
import re
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from data_prep.io.errors import InputError

_NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
_QUOTE, _OPEN, _CLOSE = _NONCHARACTERS[:3]

Message = dict[str, Any]


class ConversationError(ValueError):
    """This conversation cannot be rendered, or not be masked with certainty."""


@dataclass(frozen=True)
class Rendered:
    """`pieces` are texts and control or markup tokens in turn: (text, token id or None). `spans` are the ranges
    [start, end) of their concatenation that the assistant wrote, its closing token included. `changed_turns` are the
    messages of the assistant that the template did not render as they are.
    """

    pieces: list[tuple[str, int | None]]
    spans: list[tuple[int, int]]
    changed_turns: list[int]


class _GenerationBlock(Extension):
    """{% generation %}: where a template says itself what the assistant writes."""

    tags = {"generation"}  # noqa: RUF012, Jinja declares it so

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Any) -> str:
        return f"{_OPEN}{caller()}{_CLOSE}"


class ChatTemplate:
    """A Jinja chat template, run in a sandbox, with the tokens of its model's tokenizer.

    `variables` are what the template may name beside the conversation: bos_token and its like.
    Raises InputError for a template that is broken, or that does not show where the assistant's turns begin.
    """

    def __init__(
        self,
        source: str,
        control_tokens: dict[str, int],
        markup_tokens: dict[str, int],
        variables: dict[str, str] | None = None,
    ) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
        )
        # As transformers defines them; a template that asks for today's date gets none, so that it renders the same.
        environment.filters["tojson"] = _to_json
        environment.globals |= {**(variables or {}), "raise_exception": _refuse}
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise InputError(f"the chat template is not Jinja: {error}") from None
        self._control_tokens = control_tokens
        self._tokens = {**markup_tokens, **control_tokens}
        self._any_token = _any_of(self._tokens)
        self._any_control = _any_of(control_tokens)
        self._says_itself = re.search(r"{%-?\s*generation\s*-?%}", source) is not None
        if not self._says_itself:
            self._header, self._closing = self._find_turn_markers()
            # A turn ends with its closing token or where another begins; without closing tokens, at any control token.
            role = self._any_control.search(self._header)
            self._turn_end = _any_of([self._closing, role[0]]) if self._closing and role else self._any_control

    def render(self, messages: list[Message], tools: list[Any] | None = None) -> Rendered:
        """A conversation as text with the assistant's spans. Raises ConversationError."""
        if not all(isinstance(message, dict) for message in messages):
            raise ConversationError("holds a message that is no JSON object")
        if any(
            mark in json.dumps([messages, tools], ensure_ascii=False, default=str) for mark in (_QUOTE, _OPEN, _CLOSE)
        ):
            raise ConversationError("holds the noncharacters U+FDD0 to U+FDD2, which are needed as marks")
        text = self._run(self._quote(messages), self._quote(tools))
        spans = _marked_spans(text) if self._says_itself else self._turns(text, messages)
        changed = _changed_turns(messages, [text[start:end].replace(_QUOTE, "") for start, end in spans])
        return self._without_marks(text, spans, changed)

    def _run(self, messages: Any, tools: Any = None, prompt: bool = False) -> str:
        try:
            return self._template.render(messages=messages, tools=tools, add_generation_prompt=prompt)
        except (jinja2.TemplateError, TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
            raise ConversationError(f"does not fit the chat template: {error}") from None

    def _quote(self, value: Any) -> Any:
        """The same value with every control token in its strings broken up by a mark."""
        if isinstance(value, str):
            return self._any_control.sub(lambda match: f"{match[0][0]}{_QUOTE}{match[0][1:]}", value)
        if isinstance(value, list):
            return [self._quote(item) for item in value]
        if isinstance(value, dict):
            return {self._quote(key): self._quote(item) for key, item in value.items()}
        return value

    def _find_turn_markers(self) -> tuple[str, str]:
        """What stands before and after what the assistant writes, seen in a small conversation."""
        ask, reply = ({"role": "user", "content": "Question"}, {"role": "assistant", "content": "Answer"})
        try:
            first_turn, last_turn = (
                part.rpartition("Question")[2] for part in self._run([ask, reply, ask, reply]).split("Answer")[:2]
            )
            prompt = self._run([ask], prompt=True).rpartition("Question")[2]
            after_question = self._run([ask]).rpartition("Question")[2]
            after_first, after_last = self._run([ask, reply, ask, reply]).split("Answer")[1:3]
        except (ConversationError, ValueError) as error:
            raise InputError(f"the chat template does not render a plain conversation: {error}") from None
        header = _common_prefix(prompt, first_turn, last_turn)
        header = header[len(_common_prefix(header, after_question)) :]
        if not self._any_control.search(header):
            raise InputError(
                f"the chat template begins the assistant's turns with {header!r}, which holds no control token of this "
                "tokenizer: give the template of the tokenizer's own model, or one with {% generation %} blocks"
            )
        closing = self._any_control.match(after_last)
        return header, closing[0] if closing and after_first.startswith(closing[0]) else ""

    def _turns(self, text: str, messages: list[Message]) -> list[tuple[int, int]]:
        spans = []
        for match in re.finditer(re.escape(self._header), text):
            end = self._turn_end.search(text, match.end())
            stop = end.start() if end else len(text)
            spans.append((match.end(), stop + (len(self._closing) if end and end[0] == self._closing else 0)))
        expected = sum(message.get("role") == "assistant" for message in messages)
        if len(spans) != expected:
            raise ConversationError(f"has {expected} messages of the assistant, the chat template shows {len(spans)}")
        return spans

    def _without_marks(self, text: str, spans: list[tuple[int, int]], changed: list[int]) -> Rendered:
        clean = re.compile(f"[{_QUOTE}{_OPEN}{_CLOSE}]")
        pieces: list[tuple[str, int | None]] = []
        at = 0
        for match in self._any_token.finditer(text):
            pieces += [(clean.sub("", text[at : match.start()]), None), (match[0], self._tokens[match[0]])]
            at = match.end()
        pieces.append((clean.sub("", text[at:]), None))
        marks = [match.start() for match in clean.finditer(text)]
        kept = [(start - bisect_left(marks, start), end - bisect_left(marks, end)) for start, end in spans]
        return Rendered([piece for piece in pieces if piece[0]], kept, changed)


def tools_of(value: Any) -> list[Any] | None:
    """The tools of a record: a list, or one as JSON text, as tables have it. Raises ConversationError."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ConversationError("has tools that are neither a list nor JSON text") from None
    if value is not None and not isinstance(value, list):
        raise ConversationError(f"has a {type(value).__name__} for tools; it must be a list")
    return value or None


def _common_prefix(*texts: str) -> str:
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    return "".join(letters[0] for letters in same)


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the tokens, the longest where several begin; nothing where there are none."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")


def _marked_spans(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(f"{_OPEN}[^{_CLOSE}]*{_CLOSE}", text)]


def _changed_turns(messages: list[Message], spans: list[str]) -> list[int]:
    """Numbers of the assistant's messages whose words are not all in their span, white space aside."""
    own = [number for number, message in enumerate(messages) if message.get("role") == "assistant"]
    if len(own) != len(spans):
        return []  # a template with blocks of its own may merge turns: nothing can be said
    shown = ["".join(span.split()) for span in spans]
    said = [_words_of(messages[number]) for number in own]
    return [number for number, words, span in zip(own, said, shown, strict=True) if any(w not in span for w in words)]


def _words_of(message: Message) -> list[str]:
    """What a message says, without white space: its texts, and its reasoning where that stands apart."""
    content = message.get("content") or ""
    parts = (
        [part.get("text", "") if isinstance(part, dict) else part for part in content]
        if isinstance(content, list)
        else [content]
    )
    return ["".join(str(part).split()) for part in [*parts, message.get("reasoning_content") or ""]]


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **others: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **others)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
