"""Tokens, from the environment or a file: they are read, used and forgotten."""

import os
from pathlib import Path

from data_prep.io.errors import InputError
from data_prep.io.files import read_text


def read_list(path: Path) -> list[str]:
    """Lines of a file without comments and blank ones."""
    lines = (line.partition("#")[0].strip() for line in read_text(path).splitlines())
    return [line for line in lines if line]


def read_tokens(path: Path | None) -> list[str]:
    """Tokens of a file, one a line, else of GITHUB_TOKEN, parted by commas. Raises InputError; no message holds one."""
    if path is not None:
        tokens = read_list(path)
        if not tokens:
            raise InputError(f"{path} holds no token: write one a line")
    else:
        tokens = [token.strip() for token in os.environ.get("GITHUB_TOKEN", "").split(",") if token.strip()]
    if any(not token.isascii() or not token.isprintable() or " " in token for token in tokens):
        raise InputError("a token holds a space or a character that no token has: check the file or GITHUB_TOKEN")
    return list(dict.fromkeys(tokens))
