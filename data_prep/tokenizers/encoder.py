"""Texts to flat arrays of ids, as fast as the machine allows and always the ids that the tokenizer gives."""

import ctypes
import functools
import random
import sys
import unicodedata
import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import psutil

from data_prep.tokenizers.base import Tokenizer

Encoded = tuple[npt.NDArray[np.integer], npt.NDArray[np.int64]]  # ids (tokens,), length of each text (texts,)

# gigatoken 0.10 remembers every word that it has seen, without bound.
_GROWTH_LIMIT_BYTES = 48 << 20  # of the process since the first backend: its cache, and chunks on their way
_LEAST_CACHE_BYTES = 16 << 20  # that a new backend may grow to, whatever else has grown meanwhile

_ASCII = bytes(range(128))
_LETTER_PLANES_END = 0x40000

_PROBE = (
    "def f(x):\n\treturn {'a': [x, 0x1F, 1_000.5e-3]}  # don't, I'LL, we’ve\r\n\r\n\n   \n",
    "Zażółć gęślą jaźń. Ünïcödé e\u0301 \u212b \ufb01 ½ ① 東京、안녕하세요 مرحبا हिन्दी ไทย 🙂 \u200b\u00a0\u3000x",
    "https://example.org/a?b=c&d=%20#e  12345678901234567890 ....!!!!???? ____ ==== \x00\x07\x1b[0m \ufeff\ufffd",
    "<|endoftext|><|im_start|>user\n<|im_end|> <s></s><unk><pad> <think>a</think> <tool_call>{}</tool_call> [INST]",
    "",
    " ",
)


class Encoder(Protocol):
    """Encodes batches of texts."""

    def __init__(self, tokenizer: Tokenizer) -> None: ...

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Ids of all texts end to end, and how many each has."""

    def count_from_here(self) -> None:
        """Other memory has been taken: what bounds the encoder's own is counted anew."""


class ReferenceEncoder:
    """The tokenizer itself."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def count_from_here(self) -> None:
        """Start to count; this encoder keeps nothing between texts."""

    def encode(self, texts: Sequence[str]) -> Encoded:
        encoded = self._tokenizer.encode(texts)
        lengths = np.array([len(ids) for ids in encoded], dtype=np.int64)
        flat = np.fromiter((token for ids in encoded for token in ids), dtype=np.int64, count=int(lengths.sum()))
        return flat, lengths


class GigatokenEncoder:
    """gigatoken (MIT), made anew whenever its cache has grown by more than it may."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._process = psutil.Process()
        self._backend: Any = tokenizer.gigatoken()
        self.count_from_here()

    def count_from_here(self) -> None:
        """What the process holds by now is not the cache's."""
        self._limit = self._memory() + _GROWTH_LIMIT_BYTES

    def _memory(self) -> int:
        memory: int = self._process.memory_info().rss
        return memory

    def _keep_small(self) -> None:
        if self._memory() <= self._limit:
            return
        _give_memory_back()
        if self._memory() <= self._limit - _LEAST_CACHE_BYTES:
            return
        self._backend = None
        _give_memory_back()
        self._backend = self._tokenizer.gigatoken()
        self._limit = max(self._limit, self._memory() + _LEAST_CACHE_BYTES)

    def encode(self, texts: Sequence[str]) -> Encoded:
        self._keep_small()
        odd = [number for number, text in enumerate(texts) if has_unassigned(text)]
        layout = self._backend.encode_batch(list(texts), parallel=False).layout
        ids, offsets = np.asarray(layout.content.data), np.asarray(layout.offsets.data)
        if not odd:
            return ids, np.diff(offsets).astype(np.int64, copy=False)
        parts = np.split(ids, offsets[1:-1])
        for number, right in zip(odd, self._tokenizer.encode([texts[number] for number in odd]), strict=True):
            parts[number] = np.array(right, ids.dtype)
        return np.concatenate(parts), np.array([len(part) for part in parts], np.int64)


def has_unassigned(text: str) -> bool:
    """Whether a text holds a character that Unicode, as this Python knows it, has not assigned.

    gigatoken and the references are built with different versions of Unicode: what one calls a letter the other does
    not know, and splits differently.
    """
    if text.isascii():
        return False
    rest = text.encode("utf-8", "surrogatepass").translate(None, _ASCII)  # of source text hardly anything
    codes = rest.decode("utf-8", "surrogatepass").encode("utf-32-le", "surrogatepass")
    return bool(_unassigned()[np.frombuffer(codes, np.uint32)].any())


@functools.cache
def _unassigned() -> npt.NDArray[np.bool_]:
    unassigned = np.ones(sys.maxunicode + 1, np.bool_)  # beyond these planes lie private use and tags: rare enough
    unassigned[:_LETTER_PLANES_END] = [unicodedata.category(chr(code)) == "Cn" for code in range(_LETTER_PLANES_END)]
    return unassigned


def _give_memory_back() -> None:
    """What was freed goes back to the system: else glibc keeps it, and the next backend would come on top."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def fastest_exact(tokenizer: Tokenizer) -> GigatokenEncoder | ReferenceEncoder:
    """gigatoken where it gives this tokenizer's ids on probe texts, else the tokenizer and a warning that says why."""
    reference = ReferenceEncoder(tokenizer)
    try:
        encoder = GigatokenEncoder(tokenizer)
        ids, lengths = encoder.encode(probe_texts())
    except Exception as error:  # whatever a foreign library makes of an unknown vocabulary: the reference still works
        warnings.warn(f"gigatoken does not take this tokenizer ({error}); encoding is slower", stacklevel=2)
        return reference
    expected, expected_lengths = reference.encode(probe_texts())
    if np.array_equal(lengths, expected_lengths) and np.array_equal(ids, expected):
        return encoder
    warnings.warn("gigatoken gives other ids than this tokenizer; encoding is slower", stacklevel=2)
    return reference


def probe_texts() -> list[str]:
    """Texts on which tokenizers tend to differ: fixed ones, and runs of assigned characters of all of Unicode."""
    draw = random.Random(0)
    assigned = [chr(c) for c in range(0x20, 0x20000) if unicodedata.category(chr(c)) not in ("Cs", "Cn", "Co")]
    common = [*"abcXYZ019 .,'\n\t_-({", "  ", "\r\n", "'s"]
    mixed = ["".join(draw.choices(assigned, k=6) + draw.choices(common, k=12)) for _ in range(150)]
    words = ["".join(draw.choices(common, k=30)) for _ in range(150)]
    return [*_PROBE, *mixed, *words]
