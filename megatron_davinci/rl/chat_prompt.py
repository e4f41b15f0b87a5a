"""A prompt inside a model's chat template: what stands around the text is a user's message, and the answer begins."""

import re
from pathlib import Path

from data_prep import InputError
from data_prep.tokenize.chat_template import ChatTemplate
from data_prep.tokenize.chat_template_file import chat_template_of
from data_prep.tokenize.conversation import ConversationError
from data_prep.tokenizers import special_tokens_beside, tokenizer_file
from megatron_davinci.config.objectives import RolloutOptions
from megatron_davinci.rl.templates import OPENING, PromptTemplate, load_template
from megatron_davinci.rl.token_bytes import TokenBytes

_TEXT = "Text7f3a"  # a word that no template writes


class ChatPrompt:
    """Ids of what a chat template puts before and after a text. Raises InputError where there is no template, or one
    that does not show the message as it is."""

    def __init__(self, texts: TokenBytes) -> None:
        self._texts, tokenizer = texts, Path(texts.name)
        try:
            source = chat_template_of(tokenizer)
        except InputError:
            raise InputError(
                f"objective.chat_template is true, and {tokenizer} has no chat template: put chat_template.jinja "
                "there, set tokenizer to a directory that has one, or chat_template to false"
            ) from None
        self._template = ChatTemplate(source, texts.named, special_tokens_beside(tokenizer_file(tokenizer)))

    def before(self, words: str) -> list[int]:
        """Ids before the text, of which `words` are the message's own."""
        return self._encode(self._rendered(f"{words}{_TEXT}.")[0])

    def after(self, words: str) -> list[int]:
        """Ids behind the text: the message's own `words`, the end of the message, and the answer's opened <think>."""
        found = self._rendered(f"{_TEXT}{words.removesuffix(OPENING)}")[1]
        opened = OPENING.strip()
        marks = [mark for mark, token in self._template.marks.token_of.items() if token == opened]
        for spelled in (opened, *marks):  # some open the thought themselves, and end the line or not
            if (text := found.rstrip()).endswith(spelled):
                found = text.removesuffix(spelled)
        return [*self._encode(found), *self._encode(OPENING)]

    def _rendered(self, content: str) -> tuple[str, str]:
        try:
            parts = self._template.render([{"role": "user", "content": content}], prompt=True).split(_TEXT)
        except ConversationError as error:
            raise InputError(f"objective.chat_template is true, and the prompt {error}") from None
        if len(parts) != 2:
            raise InputError(
                f"objective.chat_template is true, and the chat template shows a message {len(parts) - 1} times: take "
                "another template, or set it to false"
            )
        return parts[0], parts[1]

    def _encode(self, text: str) -> list[int]:
        marks = self._template.marks.token_of
        ids: list[int] = []
        for piece in re.split(f"([{''.join(marks) or chr(0)}])", text):
            ids += [self._texts.named[marks[piece]]] if piece in marks else self._texts.encode(piece)
        return ids


def template_of(options: RolloutOptions, texts: TokenBytes) -> PromptTemplate:
    """The prompt of an objective, with the tokenizer of `texts`. Raises InputError where it cannot be written."""
    chat = ChatPrompt(texts) if options.chat_template else None
    return load_template(options.template, texts.encode, texts.begin, chat)
