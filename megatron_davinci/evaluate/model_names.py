"""Models as they are named on the command line."""

import re
from collections.abc import Sequence

from data_prep import InputError
from data_prep.io.hub import found_path

_NAME = re.compile(r"[\w][\w.+-]*")


def named_models(given: Sequence[str]) -> dict[str, str]:
    """NAME=DIRECTORY or NAME=ADDRESS, each name once. Raises InputError."""
    found: dict[str, str] = {}
    for each in given:
        name, equals, directory = each.partition("=")
        if not (name and equals and directory) or name in found or not _NAME.fullmatch(name):
            raise InputError(f"--model {each}: give NAME=DIRECTORY, each name once, of letters, digits and . _ + -")
        found[name] = directory if is_address(directory) else str(found_path(directory))
    return found


def is_address(model: str) -> bool:
    """Whether a model is named by the address of its server."""
    return model.startswith(("http://", "https://"))
