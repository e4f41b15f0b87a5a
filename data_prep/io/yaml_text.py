"""YAML of anybody: no objects, no key twice, nothing that unfolds to more than it says."""

import re
from typing import Any

import yaml

from data_prep.io.errors import DAMAGE, InputError, describe

MOST_YAML_BYTES = 16 << 20
_MOST_NODES, _MOST_LEVELS = 1_000_000, 100


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 8e-5 as text; a learning rate must be a number. A key twice would lose the first value."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Called for each mapping as it is written. Raises InputError for a key that it holds twice."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (before := lines.get(key.value)) is not None:
                raise InputError(
                    f"the recipe holds the key '{key.value}' twice, in lines {before} and {key.start_mark.line + 1}: "
                    "leave one out"
                )
            lines[key.value] = key.start_mark.line + 1
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(data: bytes, what: str) -> Any:
    """Raises InputError for what is no YAML, or no recipe's: nested deeply, or by names that stand for each other."""
    try:
        node = yaml.compose(data, _Loader)
        _check_nodes(node, what)
        return yaml.load(data, _Loader)  # noqa: S506  # a SafeLoader
    except yaml.YAMLError as error:
        raise InputError(f"{what} is not YAML: {_yaml_mistake(error)}") from None
    except DAMAGE as error:
        raise InputError(f"{what} is not YAML: {describe(error)}") from None


def _yaml_mistake(error: yaml.YAMLError) -> str:
    """What the parser did not take, and where."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(error).split()).replace('in "<byte string>", ', "")
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def _check_nodes(node: Any, what: str) -> None:
    """Raise InputError for a document that unfolds to more than any recipe's, before it is unfolded."""
    pending, count = [(node, 0)], 0
    while pending:
        at, depth = pending.pop()
        count += 1
        if count > _MOST_NODES or depth > _MOST_LEVELS:
            raise InputError(f"{what} is nested too deeply, or names its own parts too often: write it out")
        if isinstance(at, yaml.SequenceNode):
            pending += [(each, depth + 1) for each in at.value]
        elif isinstance(at, yaml.MappingNode):
            pending += [(each, depth + 1) for pair in at.value for each in pair]
