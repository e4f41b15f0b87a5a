"""How long a conversation is for the model that is to be trained on it."""

from pathlib import Path
from typing import Any

from data_prep.io.errors import InputError
from data_prep.tokenize.chat_template_file import chat_template_of
from data_prep.tokenize.conversation import ConversationError, conversation_of
from data_prep.tokenize.masks import encode_rendered
from data_prep.tokenize.turns import TurnRenderer
from data_prep.tokenizers import load_tokenizer, special_tokens_beside


class TrajectoryLength:
    """Counts tokens by a tokenizer and its chat template, or the one given. Raises InputError where there is none."""

    def __init__(self, tokenizer: Path, chat_template: Path | None, max_tokens: int) -> None:
        if max_tokens < 1:
            raise InputError(f"--max-tokens is {max_tokens}; it must be at least 1")
        self._max_tokens = max_tokens
        self._tokenizer, _ = load_tokenizer(tokenizer)
        source = chat_template_of(tokenizer, chat_template)
        controls, markup = self._tokenizer.control_tokens, self._tokenizer.markup_tokens
        self._turns = TurnRenderer(source, controls, markup, special_tokens_beside(tokenizer))

    def measured(self, record: dict[str, Any]) -> int:
        """The number of tokens. Raises ConversationError for what the template does not take, or what is too long."""
        ids, _ = encode_rendered(self._turns.render(conversation_of(record)), self._tokenizer)
        if len(ids) > self._max_tokens:
            raise ConversationError("too_long")
        return len(ids)
