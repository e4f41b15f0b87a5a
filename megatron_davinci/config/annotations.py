"""Whether a value has the type that an annotation says, from the annotation's text alone: its module is not imported.

`Optional[int]`, `Union[int, None]` and `int | None` are the same. A type that is not known here takes every value.
"""

import ast
from collections.abc import Callable
from typing import Any

_SIMPLE: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "None": (type(None),),
}


def accepts(annotation: str, value: Any) -> bool:
    """False where `value` is surely of another type."""
    return _accepts(ast.parse(annotation, mode="eval").body, value)


def _accepts(node: ast.expr, value: Any) -> bool:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _accepts(node.left, value) or _accepts(node.right, value)
    if isinstance(node, ast.Subscript):
        name = ast.unparse(node.value).rpartition(".")[2]
        members = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return name not in _GENERIC or _GENERIC[name](members, value)
    types = _SIMPLE.get(ast.unparse(node))
    return types is None or (isinstance(value, types) and (bool in types or not isinstance(value, bool)))


def _is_optional(members: list[ast.expr], value: Any) -> bool:
    return value is None or _is_any_of(members, value)


def _is_any_of(members: list[ast.expr], value: Any) -> bool:
    return any(_accepts(member, value) for member in members)


def _is_literal(members: list[ast.expr], value: Any) -> bool:
    known = [ast.literal_eval(member) for member in members]
    return any(value == each and type(value) is type(each) for each in known)


def _is_list(members: list[ast.expr], value: Any) -> bool:
    return isinstance(value, list) and all(_accepts(members[0], item) for item in value)


_GENERIC: dict[str, Callable[[list[ast.expr], Any], bool]] = {
    "Optional": _is_optional,
    "Union": _is_any_of,
    "Literal": _is_literal,
    "List": _is_list,
    "list": _is_list,
}
