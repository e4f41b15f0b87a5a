"""Rendered conversations: control tokens and texts in turn, and which of it is trained."""

import json
import re
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from data_prep.tokenize.chat_template import BLOCK_END, BLOCK_START, ChatTemplate, NoTurnMarkers, find_turn_markers
from data_prep.tokenize.conversation import ChatConversation, ConversationError, Message

_PROBE = "Sentinel7f3a"  # a text that no template writes


@dataclass(frozen=True)
class Rendered:
    """`pieces` are texts and control or markup tokens in turn: (text, token id or None). `spans` are the ranges
    [start, end) of their concatenation that are trained: what the assistant wrote, and the token that ends its turn.
    `changed_turns` are the messages of the assistant that the template did not render as they are. `open_ended`: the
    last turn is trained, and the template wrote no token that ends it.
    """

    pieces: list[tuple[str, int | None]]
    spans: list[tuple[int, int]]
    changed_turns: list[int]
    open_ended: bool


class TurnRenderer:
    """Renders conversations by a model's chat template, with the tokens of its tokenizer.

    Raises InputError for a template that is broken, or that does not show where the assistant's turns begin.
    """

    def __init__(
        self,
        source: str,
        control_tokens: Mapping[str, int],
        markup_tokens: Mapping[str, int],
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self._template = ChatTemplate(source, control_tokens, variables)
        self._ids = {**markup_tokens, **control_tokens}
        try:
            self._markers = None if self._template.says_itself else find_turn_markers(self._template)
        except NoTurnMarkers as error:
            roles = {token: id_ for token, id_ in markup_tokens.items() if _is_role_token(token, error.written)}
            if not roles:
                raise
            self._template = ChatTemplate(source, {**control_tokens, **roles}, variables)
            self._markers = find_turn_markers(self._template)
            markup_tokens = {token: id_ for token, id_ in markup_tokens.items() if token not in roles}
        self._markup = sorted(markup_tokens, key=len, reverse=True)
        self._shown_roles: dict[str, bool] = {}

    def render(self, conversation: ChatConversation) -> Rendered:
        """A conversation as pieces with the trained spans. Raises ConversationError."""
        messages = [self._renamed(message) for message in conversation.messages]
        text = self._template.render(messages, conversation.tools)
        turns = list(self._turns(text) if self._markers else self._marked_turns(text))
        own = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        changed: list[int] = []
        if len(own) == len(turns):
            changed = _changed_turns(messages, own, [text[start:end] for start, end in turns])
        elif self._markers or conversation.untrained:  # a template with blocks of its own may merge turns
            raise ConversationError(
                f"has {len(own)} messages of the assistant, the chat template shows {len(turns)} turns"
            )
        self._check_shown(messages, text)
        self._check_calls(messages, own, [text[start:end] for start, end in turns], conversation.tools)
        trained = [
            turn for number, turn in zip(own, turns, strict=False) if number not in conversation.untrained
        ] if conversation.untrained else turns  # fmt: skip
        ends = bool(trained) and trained[-1] == turns[-1] and not self._ends_with_a_token(text, turns[-1][1])
        return self._without_marks(text, trained, changed, ends)

    def _renamed(self, message: Message) -> Message:
        """A developer is OpenAI's newer name of the system, where the template knows no other."""
        if message["role"] != "developer" or self._template.names_developer:
            return message
        return {**message, "role": "system"}

    def _turns(self, text: str) -> Iterator[tuple[int, int]]:
        """The assistant's turns by the header before them, each with the token that ends it."""
        markers, tokens = self._markers, self._template.marks.token_of
        assert markers is not None
        # A turn ends with its closing token or where another begins; without closing tokens, at any control token.
        closing = "".join(markers.closings)
        ends = re.compile(f"[{closing}{markers.role}]" if closing else f"[{''.join(tokens)}]")
        for match in re.finditer(re.escape(markers.header), text):
            end = ends.search(text, match.end())
            stop = end.start() if end else len(text)
            yield match.end(), stop + (end is not None and end[0] in markers.closings | markers.stops)

    def _marked_turns(self, text: str) -> Iterator[tuple[int, int]]:
        """The turns of a template with blocks, and the control token that follows where a block ends without one."""
        for match in re.finditer(f"{BLOCK_START}[^{BLOCK_END}]*{BLOCK_END}", text):
            end = match.end()
            bare = not self._ends_with_a_token(text, end - 1) and text[end : end + 1] in self._template.marks.token_of
            yield match.start(), end + bare

    def _ends_with_a_token(self, text: str, end: int) -> bool:
        return text[:end].rstrip(f" \r\n{BLOCK_END}")[-1:] in self._template.marks.token_of

    def _check_shown(self, messages: list[Message], text: str) -> None:
        """Raise ConversationError where the template leaves a message of others out without a word."""
        shown, at, claimed = _squeezed(text), 0, list[tuple[int, int]]()
        for message in messages:
            role = message["role"]
            if role == "assistant":
                continue
            if not self._shows(role):
                raise ConversationError(f"has a message of the role {role}, which the chat template does not show")
            # A template may put a system's message elsewhere.
            found = _place(shown, message["content"], at) or (
                _place(shown, message["content"], 0, claimed) if role == "system" else None
            )
            if found is None:
                raise ConversationError(
                    f"has a message of the role {role}, which the chat template does not show as it is"
                )
            claimed.append(found)
            at = max(at, found[1])

    def _check_calls(
        self, messages: list[Message], own: list[int], turns: list[str], tools: list[Message] | None
    ) -> None:
        """Raise ConversationError where the template leaves a tool or a call out without a word."""
        whole = "".join(turns)
        for place, number in enumerate(own):
            turn = turns[place] if len(turns) == len(own) else whole
            for call in messages[number].get("tool_calls", ()):
                function = call["function"]
                if any(word not in turn for word in (function["name"], *function["arguments"])):
                    raise ConversationError("has a tool call, which the chat template does not show")
        if tools and not self._shows_tools:
            raise ConversationError("has tools, which the chat template does not show")

    @cached_property
    def _shows_tools(self) -> bool:
        tool = {"type": "function", "function": {"name": _PROBE, "description": "", "parameters": {"type": "object"}}}
        question = [{"role": "user", "content": "a"}]
        try:
            return _PROBE in self._template.render(question, [tool])
        except ConversationError:
            return True  # it takes others perhaps: those of the conversation have been rendered

    def _shows(self, role: str) -> bool:
        if role not in self._shown_roles:
            self._shown_roles[role] = self._shows_in_a_small_conversation(role)
        return self._shown_roles[role]

    def _shows_in_a_small_conversation(self, role: str) -> bool:
        probe, question, answer = (
            {"role": each, "content": content} for each, content in ((role, _PROBE), ("user", "a"), ("assistant", "b"))
        )
        refused = 0
        for messages in ([probe, question, answer], [question, answer, probe, answer]):
            try:
                if _PROBE in self._template.render(messages):
                    return True
            except ConversationError:
                refused += 1
        return refused == 2  # it may take the role elsewhere; where it shows nothing of it, the message is missed

    def _without_marks(self, text: str, spans: list[tuple[int, int]], changed: list[int], open_ended: bool) -> Rendered:
        token_of = self._template.marks.token_of
        special = re.compile(
            "|".join([f"[{BLOCK_START}{BLOCK_END}{''.join(token_of)}]", *map(re.escape, self._markup)])
        )
        pieces: list[tuple[str, int | None]] = []
        places, growth = [], []  # where the text with tokens is longer, or without marks shorter, than that with marks
        at = 0
        for match in special.finditer(text):
            written = token_of.get(match[0], "" if match[0] in (BLOCK_START, BLOCK_END) else match[0])
            pieces += [(text[at : match.start()], None), (written, self._ids.get(written))]
            places.append(match.start())
            growth.append(len(written) - len(match[0]))
            at = match.end()
        pieces.append((text[at:], None))
        moved = [0, *accumulate(growth)]
        kept = [tuple(at + moved[bisect_left(places, at)] for at in span) for span in spans]
        return Rendered(_joined(pieces), [(start, end) for start, end in kept], changed, open_ended)


def _is_role_token(token: str, written: str) -> bool:
    """Whether a template writes a token around turns; DeepSeek's tokenizers do not declare theirs special."""
    return token in written and not re.search("think|tool", token)


def _joined(pieces: list[tuple[str, int | None]]) -> list[tuple[str, int | None]]:
    """The pieces without empty ones; texts that a mark alone parted are one, as the model's tokenizer has them."""
    joined: list[tuple[str, int | None]] = []
    for text, token in pieces:
        if token is None and joined and joined[-1][1] is None:
            joined[-1] = (joined[-1][0] + text, None)
        elif text:
            joined.append((text, token))
    return joined


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _place(shown: str, content: str, at: int, claimed: Collection[tuple[int, int]] = ()) -> tuple[int, int] | None:
    """Where a content stands in a text without white space, from `at` on and in no claimed range."""
    for form in (content, json.dumps(content, ensure_ascii=False)[1:-1], json.dumps(content)[1:-1]):
        wanted = _squeezed(form)
        found = shown.find(wanted, at)
        while found >= 0 and any(begin <= found < end for begin, end in claimed):
            found = shown.find(wanted, found + 1)
        if found >= 0:
            return found, found + len(wanted)
    return None


def _changed_turns(messages: list[Message], own: list[int], turns: list[str]) -> list[int]:
    """Numbers of the assistant's messages whose words are not all in their turn, white space aside."""
    shown = map(_squeezed, turns)
    return [
        number
        for number, turn in zip(own, shown, strict=True)
        if any(_squeezed(messages[number].get(words) or "") not in turn for words in ("content", "reasoning_content"))
    ]
