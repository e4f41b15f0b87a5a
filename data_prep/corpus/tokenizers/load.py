"""From a path to a tokenizer, and to the description that ties a corpus to it."""

from pathlib import Path
from typing import Any

from xxhash import xxh3_64

from data_prep.corpus.tokenizers.base import Tokenizer
from data_prep.errors import InputError
from data_prep.files import read_json

_FORMS = "a tokenizer.json, a directory with one, a Qwen .tiktoken file or a SentencePiece .model"


def tokenizer_file(path: Path) -> Path:
    """The file that defines a tokenizer, given that file or a Hugging Face directory. Raises InputError."""
    file = path
    if path.is_dir():
        file = next((path / name for name in ("tokenizer.json", "tokenizer.model") if (path / name).is_file()), file)
        if file == path:
            raise InputError(f"{path / 'tokenizer.json'} does not exist: give {_FORMS}")
    if not file.is_file():
        raise InputError(f"{file} does not exist: give {_FORMS}")
    if file.suffix not in (".json", ".tiktoken", ".model"):
        raise InputError(f"{file} is no known tokenizer: give {_FORMS}")
    return file


def load_tokenizer(path: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """A tokenizer and the description that ties a corpus to it."""
    file = tokenizer_file(path)
    tokenizer: Tokenizer
    if file.suffix == ".tiktoken":
        from data_prep.corpus.tokenizers.qwen import QwenTiktokenTokenizer

        kind, tokenizer = "qwen-tiktoken", QwenTiktokenTokenizer(file)
    elif file.suffix == ".model":
        from data_prep.corpus.tokenizers.sentence_piece import SentencePieceTokenizer

        kind, tokenizer = "sentencepiece", SentencePieceTokenizer(file)
    else:
        from data_prep.corpus.tokenizers.huggingface import HuggingFaceTokenizer

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


def special_tokens_beside(path: Path) -> dict[str, str]:
    """bos_token, eos_token and their like of the tokenizer_config.json beside a tokenizer: templates name them."""
    config = tokenizer_file(path).with_name("tokenizer_config.json")
    declared = read_json(config) if config.is_file() else {}
    named = {name: value for name, value in declared.items() if name.endswith("_token") and value}
    texts = {name: value["content"] if isinstance(value, dict) else value for name, value in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def tokenizer_fingerprint(file: Path) -> str:
    """Identity of a tokenizer: xxh3 of the file that defines it."""
    return f"xxh3_64:{xxh3_64(file.read_bytes()).hexdigest()}"
