"""What a corpus needs of a tokenizer."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


class Tokenizer(Protocol):
    """A tokenizer whose control tokens stay text where they occur in a text.

    `vocab_size` is one more than the largest id; `eod` the id that ends a document; `bos` the one that begins it, and
    `adds_bos` whether the tokenizer puts it before a text by itself, as its model was trained. `control_tokens` (turn
    markers) and `markup_tokens` (such as <think>) are text to id: a conversation's template writes the first, its
    messages may hold the second. `lost_bytes`: those that no token stands for; texts with them are not spelled whole.
    """

    vocab_size: int
    eod: int | None
    bos: int | None
    adds_bos: bool
    control_tokens: dict[str, int]
    markup_tokens: dict[str, int]
    lost_bytes: frozenset[int]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; nothing is added at either end."""

    def encode_with_offsets(self, text: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Ids of one text, and the character at which each begins: both (tokens,)."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, control tokens included."""

    def normalize(self, text: str) -> str:
        """What `encode` makes of a text before it splits it."""

    def token_bytes(self, ids: Sequence[int]) -> list[bytes] | None:
        """The bytes of each id; None unless the ids of every text without `lost_bytes` spell the UTF-8 of its normal
        form, end to end."""

    def gigatoken(self) -> Any:
        """A new gigatoken.Tokenizer for the same ids. Raises where gigatoken does not know this kind."""
