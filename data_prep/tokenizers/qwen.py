"""Qwen's qwen.tiktoken: byte-level BPE ranks, NFC normalisation, control tokens after the ranks."""

import base64
import binascii
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tiktoken

from data_prep.io.errors import InputError

# The pattern and the control tokens of Qwen's published tokenizer (QwenLM/Qwen, tokenization_qwen.py).
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_BEFORE_ASCII = re.compile(r"(?=[\x00-\x7f])")


class QwenTiktokenTokenizer:
    """See Tokenizer."""

    def __init__(self, path: Path) -> None:
        self._path = path
        ranks = _read_ranks(path)
        self.control_tokens = {token: len(ranks) + i for i, token in enumerate(_CONTROL_TOKENS)}
        self.markup_tokens: dict[str, int] = {}
        self.lost_bytes: frozenset[int] = frozenset()
        self._encoding = tiktoken.Encoding(
            path.name, pat_str=QWEN_PATTERN, mergeable_ranks=ranks, special_tokens=self.control_tokens
        )
        self.vocab_size = self._encoding.max_token_value + 1
        self.eod: int | None = self.control_tokens["<|endoftext|>"]
        self.bos: int | None = None
        self.adds_bos = False

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._encoding.encode_ordinary_batch(list(map(self.normalize, texts)))

    def encode_with_offsets(self, text: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        normal, origin = _normalize(text)
        ids = self._encoding.encode_ordinary(normal)
        _, starts = self._encoding.decode_with_offsets(ids)
        return np.array(ids, np.int64), origin[np.array(starts, np.int64)]

    def decode(self, ids: Sequence[int]) -> str:
        return self._encoding.decode(list(ids))

    def normalize(self, text: str) -> str:
        return text if text.isascii() else unicodedata.normalize("NFC", text)

    def token_bytes(self, ids: Sequence[int]) -> list[bytes] | None:
        return self._encoding.decode_tokens_bytes(list(ids))

    def gigatoken(self) -> Any:
        from gigatoken import Tokenizer

        return _NormalizingFirst(Tokenizer.from_tiktoken(self._path, "qwen2"), self.normalize)


class _NormalizingFirst:
    """A gigatoken backend of a rank file, which knows nothing of NFC."""

    def __init__(self, backend: Any, normalize: Callable[[str], str]) -> None:
        self._backend, self._normalize = backend, normalize

    def encode_batch(self, texts: Sequence[str], *, parallel: bool) -> Any:
        return self._backend.encode_batch(list(map(self._normalize, texts)), parallel=parallel)


def _normalize(text: str) -> tuple[str, npt.NDArray[np.int64]]:
    """The text in NFC, and the character of the original that each of its characters comes from."""
    if unicodedata.is_normalized("NFC", text):
        return text, np.arange(len(text))
    pieces, origins, at = [], [], 0
    for piece in _BEFORE_ASCII.split(text):  # no ASCII character composes with what stands before it
        pieces.append(unicodedata.normalize("NFC", piece))
        same = len(pieces[-1]) == len(piece)
        origins.append(at + (np.arange(len(piece)) if same else np.zeros(len(pieces[-1]), np.int64)))
        at += len(piece)
    return "".join(pieces), np.concatenate(origins)


def _read_ranks(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise InputError(f"{path}, line {number}, is not a base64 token and its rank") from None
    if not set(map(bytes, zip(range(256), strict=True))) <= ranks.keys():
        raise InputError(f"{path} is not a complete .tiktoken file: some bytes have no token")
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise InputError(f"{path} is not a complete .tiktoken file: its ranks are not 0 to {len(ranks) - 1}")
    return ranks
