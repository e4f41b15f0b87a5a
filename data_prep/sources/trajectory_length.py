"""How long a conversation is for the model that is to be trained on it, counted in a process with limits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep.io.errors import InputError
from data_prep.io.limited_process import LimitedProcess, Mark, ProcessEnded
from data_prep.tokenize.chat_template_file import chat_template_of
from data_prep.tokenize.conversation import ConversationError, conversation_of
from data_prep.tokenize.masks import encode_rendered
from data_prep.tokenize.turns import TurnRenderer
from data_prep.tokenize.worker_process import allowed_seconds
from data_prep.tokenizers import load_tokenizer, special_tokens_beside

_LOADING_SECONDS = 60.0


class TrajectoryLength:
    """Counts tokens by a tokenizer and its chat template, or the one given. Raises InputError where there is none."""

    def __init__(self, tokenizer: Path, chat_template: Path | None, max_tokens: int) -> None:
        if max_tokens < 1:
            raise InputError(f"--max-tokens is {max_tokens}; it must be at least 1")
        self._max_tokens = max_tokens
        source = chat_template_of(tokenizer, chat_template)
        try:
            self._process = LimitedProcess(_start, (tokenizer, source), _LOADING_SECONDS)
        except ProcessEnded as end:
            raise InputError(f"{tokenizer} or its chat template was refused: loading it {end.reason}") from None

    def measured(self, record: dict[str, Any]) -> int:
        """The number of tokens. Raises ConversationError for what the template does not take, or what is too long."""
        conversation = conversation_of(record)
        try:
            found: int | str = self._process.call(record, allowed_seconds(conversation.size))
        except ProcessEnded:
            raise ConversationError("cannot_be_measured") from None
        if isinstance(found, str):
            raise ConversationError(found)
        if found > self._max_tokens:
            raise ConversationError("too_long")
        return found


def _start(path: Path, source: str) -> tuple[None, Callable[[dict[str, Any], Mark], int | str]]:
    tokenizer, _ = load_tokenizer(path)
    turns = TurnRenderer(source, tokenizer.control_tokens, tokenizer.markup_tokens, special_tokens_beside(path))

    def count(record: dict[str, Any], _mark: Mark) -> int | str:
        try:
            return len(encode_rendered(turns.render(conversation_of(record)), tokenizer)[0])
        except ConversationError as reason:
            return str(reason)

    return None, count
