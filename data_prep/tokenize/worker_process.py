"""What runs in a process of EncodingPool: it holds the tokenizer, and reads, renders and encodes."""

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.io.limited_process import Mark
from data_prep.tokenize.chunk import Chunk
from data_prep.tokenize.encode import ChunkEncoder, EncodedChunk, Encoding, parse
from data_prep.tokenizers import Tokenizer, load_tokenizer, special_tokens_beside
from data_prep.tokenizers.encoder import Encoder, GigatokenEncoder, ReferenceEncoder, fastest_exact

_SECONDS, _BYTES_PER_SECOND = 5.0, 100_000  # the slowest tokenizer takes a tenth of that for a long document

FASTEST, REFERENCE, _GIGATOKEN = "fastest", "reference", "gigatoken"
_ENCODERS: dict[str, type[Encoder]] = {REFERENCE: ReferenceEncoder, _GIGATOKEN: GigatokenEncoder}


@dataclass(frozen=True)
class LoadedTokenizer:
    """What the rest needs to know of a tokenizer; `description` ties a corpus to it."""

    description: dict[str, Any]
    kind: str
    eod: int | None
    bos: int | None
    adds_bos: bool
    warnings: tuple[str, ...]


_Job = tuple[Encoding, Chunk | None, Mapping[int, str], bool]


def allowed_seconds(size: int) -> float:
    """Processor time that reading, rendering and encoding `size` bytes may take."""
    return _SECONDS + size / _BYTES_PER_SECOND


def start_worker(
    path: Path, kind: str, beside_others: bool
) -> tuple[LoadedTokenizer, Callable[[_Job, Mark], EncodedChunk | None]]:
    """Load the tokenizer; see LimitedProcess. `kind` of the encoder, or FASTEST: what is exact is found first."""
    if beside_others:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    tokenizer, description = load_tokenizer(path)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        encoder = fastest_exact(tokenizer) if kind == FASTEST else _ENCODERS[kind](tokenizer)
    words = tuple(str(each.message) for each in said)
    found = next(name for name, encoder_class in _ENCODERS.items() if type(encoder) is encoder_class)
    loaded = LoadedTokenizer(description, found, tokenizer.eod, tokenizer.bos, tokenizer.adds_bos, words)
    return loaded, _Worker(tokenizer, encoder, special_tokens_beside(path))


class _Worker:
    def __init__(self, tokenizer: Tokenizer, encoder: Encoder, beside: Mapping[str, str]) -> None:
        self._tokenizer, self._encoder, self._beside = tokenizer, encoder, beside
        self._encoding: Encoding | None = None

    def __call__(self, job: _Job, mark: Mark) -> EncodedChunk | None:
        encoding, chunk, hopeless, one_by_one = job
        if encoding != self._encoding:
            self._chunk_encoder = ChunkEncoder(encoding, self._tokenizer, self._encoder, self._beside)
            self._encoding = encoding
        if chunk is None:
            return None
        parsed = parse(chunk, encoding, hopeless)
        return self._chunk_encoder.encode(parsed, lambda number, size: mark(number, allowed_seconds(size)), one_by_one)
