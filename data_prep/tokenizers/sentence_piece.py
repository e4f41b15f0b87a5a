"""A SentencePiece .model file, run by the sentencepiece library."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sentencepiece

from data_prep.io.errors import InputError
from data_prep.tokenizers.files import adds_bos_beside


class SentencePieceTokenizer:
    """See Tokenizer. Control symbols never come out of text; symbols that the model's maker defined do."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise InputError(f"{path} is not a SentencePiece model: {error}") from None
        self.vocab_size: int = self._model.vocab_size()
        self.eod: int | None = self._model.eos_id() if self._model.eos_id() >= 0 else None
        self.bos: int | None = self._model.bos_id() if self._model.bos_id() >= 0 else None
        self.adds_bos = self.bos is not None and bool(adds_bos_beside(path))
        controls = [number for number in range(self.vocab_size) if self._model.is_control(number)]
        self.control_tokens = {self._model.id_to_piece(number): number for number in controls}
        self.markup_tokens: dict[str, int] = {}
        self.lost_bytes: frozenset[int] = frozenset()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self._model.encode(list(texts))
        return ids

    def encode_with_offsets(self, text: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        pieces = self._model.encode(text, return_type="proto").pieces
        ids = np.array([piece.id for piece in pieces], np.int64)
        begins = np.array([piece.begin for piece in pieces], np.int64)  # in bytes of UTF-8
        starts_character = (np.frombuffer(text.encode(), np.uint8) & 0xC0) != 0x80
        character = np.append(np.cumsum(starts_character) - 1, len(text))
        return ids, character[begins]

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._model.decode(list(ids))
        return text

    def normalize(self, text: str) -> str:
        normal: str = self._model.normalize(text)
        return normal

    def token_bytes(self, ids: Sequence[int]) -> list[bytes] | None:
        return None  # unknown characters are lost, spaces are added and change

    def gigatoken(self) -> Any:
        from gigatoken import Tokenizer

        return Tokenizer.from_sentencepiece(self._path)
