"""The file that defines a tokenizer, its identity, and what is declared beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xxhash import xxh3_64

from data_prep.io.errors import InputError
from data_prep.io.files import read_json

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


def special_tokens_beside(path: Path) -> dict[str, str]:
    """bos_token, eos_token and their like of the tokenizer_config.json beside a tokenizer: templates name them."""
    named = {name: value for name, value in _config_beside(path).items() if name.endswith("_token") and value}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def adds_bos_beside(path: Path) -> bool | None:
    """What the tokenizer_config.json beside a tokenizer says of BOS before texts; None where it says nothing."""
    said = _config_beside(path).get("add_bos_token")
    return said if isinstance(said, bool) else None


def _config_beside(path: Path) -> dict[str, Any]:
    config = tokenizer_file(path).with_name("tokenizer_config.json")
    declared = read_json(config) if config.is_file() else {}
    if not isinstance(declared, dict):
        raise InputError(f"{config} holds no JSON object")
    return declared


def tokenizer_fingerprint(file: Path) -> str:
    """Identity of a tokenizer: xxh3 of the file that defines it."""
    return f"xxh3_64:{xxh3_64(file.read_bytes()).hexdigest()}"


def is_tokenizer_of(path: Path, description: Mapping[str, Any]) -> bool:
    """True where the tokenizer at `path` is the one that a corpus's manifest describes."""
    return bool(tokenizer_fingerprint(tokenizer_file(path)) == description["fingerprint"])
