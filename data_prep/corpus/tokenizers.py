"""Tokenizers: a Hugging Face tokenizer.json, or a Qwen .tiktoken vocabulary. Control tokens in text stay text."""

import base64
import binascii
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import orjson
import tiktoken
import tokenizers
from xxhash import xxh3_64

from data_prep.errors import InputError
from data_prep.files import read_json

# The pattern and the control tokens of Qwen's published tokenizer (QwenLM/Qwen, tokenization_qwen.py).
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_END_OF_DOCUMENT = "<|endoftext|>"


class Tokenizer(Protocol):
    """What the corpus needs of a tokenizer. `vocab_size` is one more than the largest id."""

    vocab_size: int
    eod: int | None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; nothing is added at either end."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, control tokens included."""


class HuggingFaceTokenizer:
    """A tokenizer.json, run by the tokenizers library."""

    def __init__(self, path: Path) -> None:
        definition = read_json(path)
        # "<|im_end|>" or "<tool_call>" inside a document is text. The library can treat special tokens so, and what
        # Hugging Face adds as not special is a control token to the model all the same.
        for token in definition.get("added_tokens") or []:
            token["special"] = True
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(orjson.dumps(definition).decode())
        except Exception as error:  # the library raises plain Exception
            raise InputError(f"{path} is not a Hugging Face tokenizer.json: {error}") from None
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        # Instruct variants declare the end of a turn as eos_token; documents still end with <|endoftext|>.
        self.eod = self._tokenizer.token_to_id(_END_OF_DOCUMENT)
        if self.eod is None and (declared := _declared_eos(path)):
            self.eod = self._tokenizer.token_to_id(declared)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [item.ids for item in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)


def _declared_eos(tokenizer_json: Path) -> str | None:
    """The eos_token of the tokenizer_config.json beside it: the only place where Hugging Face says so."""
    config = tokenizer_json.with_name("tokenizer_config.json")
    token = read_json(config).get("eos_token") if config.is_file() else None
    return token["content"] if isinstance(token, dict) else token


class QwenTiktokenTokenizer:
    """Qwen's qwen.tiktoken: byte-level BPE ranks, NFC normalisation, control tokens after the ranks."""

    def __init__(self, path: Path) -> None:
        ranks = _read_ranks(path)
        control = {token: len(ranks) + i for i, token in enumerate(_QWEN_CONTROL_TOKENS)}
        self._encoding = tiktoken.Encoding(
            path.name, pat_str=QWEN_PATTERN, mergeable_ranks=ranks, special_tokens=control
        )
        self.vocab_size = self._encoding.max_token_value + 1
        self.eod: int | None = control[_END_OF_DOCUMENT]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._encoding.encode_ordinary_batch([unicodedata.normalize("NFC", text) for text in texts])

    def decode(self, ids: Sequence[int]) -> str:
        return self._encoding.decode(list(ids))


def _read_ranks(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise InputError(f"{path}, line {number}, is not a base64 token and its rank") from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise InputError(f"{path} is not a complete .tiktoken file: its ranks are not 0 to {len(ranks) - 1}")
    return ranks


def tokenizer_file(path: Path) -> Path:
    """The file that defines a tokenizer, given that file or a Hugging Face directory. Raises InputError."""
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{file} does not exist: give a tokenizer.json, a directory with one, or a .tiktoken file")
    if file.suffix not in (".json", ".tiktoken"):
        raise InputError(f"{file} is no known tokenizer: give a tokenizer.json, a directory with one, or a .tiktoken")
    return file


def load_tokenizer(path: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """A tokenizer and the description that ties a corpus to it."""
    file = tokenizer_file(path)
    tokenizer: Tokenizer
    if file.suffix == ".tiktoken":
        kind, tokenizer = "qwen-tiktoken", QwenTiktokenTokenizer(file)
    else:
        kind, tokenizer = "huggingface", HuggingFaceTokenizer(file)
    return tokenizer, {
        "kind": kind,
        "vocab_size": tokenizer.vocab_size,
        "eod": tokenizer.eod,
        "fingerprint": tokenizer_fingerprint(file),
    }


def load_tokenizer_of(description: dict[str, Any], path: Path) -> Tokenizer:
    """The tokenizer at `path`. Raises InputError unless it is the one that a corpus's manifest describes."""
    tokenizer, found = load_tokenizer(path)
    if found["fingerprint"] != description["fingerprint"]:
        raise InputError(f"{path} is not the tokenizer that made the corpus: give that one")
    return tokenizer


def tokenizer_fingerprint(file: Path) -> str:
    """Identity of a tokenizer: xxh3 of the file that defines it."""
    return f"xxh3_64:{xxh3_64(file.read_bytes()).hexdigest()}"
