"""Whether a record's fields hold what their types say: records and answers of servers are anybody's."""

from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_LARGEST = 1 << 63


def check_fields(value: Any) -> None:
    """Raise TypeError where a field of a dataclass, or of one in it, is of another type, beyond 64 bits, or no text."""
    kind: Any = type(value)
    for name, hint in _hints(kind).items():
        _check(getattr(value, name), hint, name)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _check(value: Any, hint: Any, name: str) -> None:
    if hint in (str, int, bool, float, bytes, NoneType):
        if type(value) is not hint or (hint is int and abs(value) >= _LARGEST):
            size = " of 64 bits" if hint is int else ""
            raise TypeError(f"{name} is a {type(value).__name__}, no {hint.__name__}{size}")
        if hint is str and not value.isascii():
            value.encode()  # half a character is no text
        return
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        _check_union(value, inside, name)
    elif origin is Literal:
        if value not in inside:
            raise TypeError(f"{name} is none of {', '.join(map(str, inside))}")
    elif origin is tuple and type(value) is tuple:
        for each in value:
            _check(each, inside[0], name)
    elif origin is dict and type(value) is dict:
        for key, each in value.items():
            _check(key, inside[0], name)
            _check(each, inside[1], name)
    elif isinstance(hint, type) and is_dataclass(hint) and isinstance(value, hint):
        check_fields(value)
    else:
        raise TypeError(f"{name} is a {type(value).__name__}")


def _check_union(value: Any, hints: tuple[Any, ...], name: str) -> None:
    if value is None and NoneType in hints:
        return
    others = [hint for hint in hints if hint is not NoneType]
    if len(others) == 1:
        _check(value, others[0], name)
    elif type(value) not in others:
        raise TypeError(f"{name} is a {type(value).__name__}")
