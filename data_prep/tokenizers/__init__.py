"""Tokenizers of corpora: one contract, three kinds, and the fast path that gives the same ids."""

from data_prep.tokenizers.base import Tokenizer
from data_prep.tokenizers.files import is_tokenizer_of, special_tokens_beside, tokenizer_file, tokenizer_fingerprint
from data_prep.tokenizers.load import load_tokenizer, load_tokenizer_of
from data_prep.tokenizers.qwen import QWEN_PATTERN

__all__ = [
    "QWEN_PATTERN",
    "Tokenizer",
    "is_tokenizer_of",
    "load_tokenizer",
    "load_tokenizer_of",
    "special_tokens_beside",
    "tokenizer_file",
    "tokenizer_fingerprint",
]
