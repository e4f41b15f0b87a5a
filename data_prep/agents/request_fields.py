"""More fields of every request, from the command line."""

from collections.abc import Sequence
from typing import Any

import orjson

from data_prep.io.errors import InputError

_OURS = frozenset({"model", "messages", "tools", "stream", "n"})
_OMITTED = frozenset({"temperature", "max_tokens"})  # which some servers refuse: null leaves them out


def request_fields(given: Sequence[str]) -> dict[str, Any]:
    """Fields out of name=JSON. Raises InputError for one that is none, or that the command sets itself."""
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise InputError(f"--request {text!r} is no name=JSON: write top_p=0.95")
        if name in _OURS:
            raise InputError(f"--request {name}=... cannot be given: this command sets it")
        if name in _OMITTED and value != "null":
            raise InputError(f"--request {name}=... has an option of its own; null alone is taken, and leaves it out")
        try:
            found[name] = orjson.loads(value)
        except orjson.JSONDecodeError:
            raise InputError(f"--request {text!r}: {value!r} is no JSON; a text stands in quotes") from None
    return found
