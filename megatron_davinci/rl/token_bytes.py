"""A tokenizer as RMT sees it: what bytes each id stands for, which ids an answer can name, and templates as ids."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep import InputError
from data_prep.io.arrays import Int64s
from data_prep.tokenizers import load_tokenizer, tokenizer_file
from megatron_davinci.rl.answers import can_be_boxed
from megatron_davinci.rl.rewards import TokenGrader

_SHOWN = 200  # tokens


class TokenBytes:
    """`texts[id]`: the bytes of a token, none where it is a control token or no token at all.

    `boxable` (ids,): whether \\boxed{} can hold those bytes. `begin`: what the tokenizer puts before a text. Raises
    InputError where a tokenizer's texts are not the bytes of its tokens, end to end: its tokens could not be asked for.
    """

    def __init__(self, directory: Path) -> None:
        self.name = str(directory)
        self._tokenizer, _ = load_tokenizer(tokenizer_file(directory))
        bos = self._tokenizer.bos if self._tokenizer.adds_bos else None
        self.begin: list[int] = [] if bos is None else [bos]
        self.named = {**self._tokenizer.control_tokens, **self._tokenizer.markup_tokens}
        """Token -> id, of those that a text cannot spell."""
        added = set(self.named.values())
        spelled = self._tokenizer.token_bytes([0 if id_ in added else id_ for id_ in range(self._tokenizer.vocab_size)])
        if spelled is None:
            raise InputError(
                f"the tokenizer in {directory} does not spell texts byte by byte, so that no answer could name one of "
                "its tokens: the objective needs a model with byte-level BPE, such as Qwen's or Llama 3's"
            )
        self.texts = [b"" if id_ in added else text for id_, text in enumerate(spelled)]
        for text, id_ in self._tokenizer.markup_tokens.items():
            self.texts[id_] = text.encode()  # <think> is a token of some models
        self.boxable: npt.NDArray[np.bool_] = np.array([can_be_boxed(text) for text in self.texts])
        self.answerable: npt.NDArray[np.bool_] = np.array([bool(text) for text in self.texts]) & self.boxable
        self._markup = re.compile("|".join(map(re.escape, self._tokenizer.markup_tokens)) or r"(?!)")

    def answerable_by(self, grader: TokenGrader) -> npt.NDArray[np.bool_]:
        """(ids,): tokens for which an answer can be correct."""
        return self.answerable & np.array([grader.can_match(text) for text in self.texts])

    def of(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of each id; none for ids that pad the vocabulary."""
        return [self.texts[id_] if id_ < len(self.texts) else b"" for id_ in ids]

    def text_of(self, ids: Sequence[int]) -> str:
        """Ids as text for people: bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self.of(ids)).decode(errors="replace")

    def before(self, ids: Int64s, position: int) -> str:
        """The end of the text before a position, for people."""
        return self.text_of(ids[max(0, position - _SHOWN) : position].tolist())

    def encode(self, template: str) -> list[int]:
        """Ids of a template's text, in which <think> is the token of that name where there is one.

        Raises InputError where they do not spell the text.
        """
        ids: list[int] = []
        at = 0
        for found in self._markup.finditer(template):
            ids += [*self._encode_plain(template[at : found.start()]), self._tokenizer.markup_tokens[found.group()]]
            at = found.end()
        ids += self._encode_plain(template[at:])
        if b"".join(self.of(ids)) != template.encode():
            raise InputError(
                f"the tokenizer in {self.name} cannot express the template: of {template!r} it makes "
                f"{b''.join(self.of(ids)).decode(errors='replace')!r}; choose another template or model"
            )
        return ids

    def first_token(self, text: bytes) -> bytes:
        """The bytes of a text's first token; none where it is not UTF-8, and so no text."""
        try:
            ids = self._encode_plain(text.decode())
        except UnicodeDecodeError:
            return b""
        return self.texts[ids[0]] if ids else b""

    def _encode_plain(self, text: str) -> list[int]:
        return self._tokenizer.encode([text])[0] if text else []
