"""From a path to a tokenizer, and to the description that ties a corpus to it."""

from pathlib import Path
from typing import Any

from data_prep.io.errors import InputError, refused_if_damaged
from data_prep.tokenizers.base import Tokenizer
from data_prep.tokenizers.files import tokenizer_file, tokenizer_fingerprint


def load_tokenizer(path: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """A tokenizer and the description that ties a corpus to it."""
    file = tokenizer_file(path)
    with refused_if_damaged(file):
        tokenizer, kind = _load(file)
    return tokenizer, {
        "kind": kind,
        "vocab_size": tokenizer.vocab_size,
        "eod": tokenizer.eod,
        "fingerprint": tokenizer_fingerprint(file),
    }


def _load(file: Path) -> tuple[Tokenizer, str]:
    kind: str
    tokenizer: Tokenizer
    if file.suffix == ".tiktoken":
        from data_prep.tokenizers.qwen import QwenTiktokenTokenizer

        kind, tokenizer = "qwen-tiktoken", QwenTiktokenTokenizer(file)
    elif file.suffix == ".model":
        from data_prep.tokenizers.sentence_piece import SentencePieceTokenizer

        kind, tokenizer = "sentencepiece", SentencePieceTokenizer(file)
    else:
        from data_prep.tokenizers.huggingface import HuggingFaceTokenizer

        kind, tokenizer = "huggingface", HuggingFaceTokenizer(file)
    return tokenizer, kind


def load_tokenizer_of(description: dict[str, Any], path: Path) -> Tokenizer:
    """The tokenizer at `path`. Raises InputError unless it is the one that a corpus's manifest describes."""
    tokenizer, found = load_tokenizer(path)
    if found["fingerprint"] != description["fingerprint"]:
        raise InputError(f"{path} is not the tokenizer that made the corpus: give that one")
    return tokenizer
