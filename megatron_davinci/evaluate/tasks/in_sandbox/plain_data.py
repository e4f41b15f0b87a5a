"""Plain data as JSON, and back: what passes between two processes that do not trust each other.

Numbers, texts, None, lists, tuples, sets, dictionaries and bytes keep their kinds; of a subclass the plain value is
taken, so that no method of somebody's object decides a comparison. It runs in the sandbox: standard library alone.
"""

import ctypes
from typing import Any

_PR_SET_DUMPABLE = 4
_LARGE_BITS = 1024


class NotPlain(Exception):
    """A value is none of these kinds."""


def encode(value: Any) -> Any:
    """A value for json.dumps. Raises NotPlain."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and int.bit_length(value) > _LARGE_BITS:
        return {"int": hex(int.__add__(value, 0))}  # a decimal number of millions of digits takes minutes
    for kind in (int, float, str):
        if isinstance(value, kind):
            return value if type(value) is kind else _plain(kind, value)
    if isinstance(value, complex):
        return {"complex": [float(value.real), float(value.imag)]}
    if isinstance(value, bytes | bytearray):
        return {type(value).__name__: bytes.hex(bytes(value))}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(held)] for key, held in dict.items(value)]}
    if isinstance(value, list):
        return [encode(each) for each in list.__iter__(value)]
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [encode(each) for each in kind.__iter__(value)]}
    raise NotPlain(type(value).__name__)


def _plain(kind: type, value: Any) -> Any:
    """The value of a subclass's instance, whatever the subclass says of itself."""
    if kind is int:
        return int.__add__(value, 0)
    return float.__add__(value, 0.0) if kind is float else str.__str__(value)


def decode(held: Any) -> Any:
    """The value that `encode` was given. Raises ValueError, TypeError and LookupError for what it has not made."""
    if isinstance(held, list):
        return [decode(each) for each in held]
    if not isinstance(held, dict):
        return held
    [(kind, content)] = held.items()
    if kind == "dict":
        return {decode(key): decode(each) for key, each in content}
    if kind == "complex":
        return complex(*content)
    if kind == "int":
        return int(content, 16)
    if kind in ("bytes", "bytearray"):
        return {"bytes": bytes, "bytearray": bytearray}[kind].fromhex(content)
    return {"tuple": tuple, "set": set, "frozenset": frozenset}[kind](decode(each) for each in content)


def close_to_others() -> None:
    """Close this process's memory and descriptors to other processes of the same user. Raises OSError."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "this process cannot be closed to others")
