"""How a command says what it did."""

import re
from typing import Any

import orjson

from data_prep.io.errors import printable
from data_prep.io.exit_codes import print_done

_OURS = re.compile(r"[a-z][a-z_]*")


def print_summary(summary: dict[str, Any], as_json: bool = False, following: str = "") -> None:
    """Print a summary for a person, one line per fact, or for a script. `following`: the command that comes next."""
    if as_json:
        print_done(orjson.dumps(summary).decode())
        return
    lines = []
    for key, value in summary.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {_shown(count)}" for name, count in value.items()) or "none"
        lines.append(f"{_label(key):>18}  {_shown(value)}")
    if following:
        lines.append(f"{'next':>18}  {printable(following)}")
    print_done("\n".join(lines))


def _label(key: str) -> str:
    """The name of a fact in words; a name that a person gave stays as it is."""
    return key.replace("_", " ") if _OURS.fullmatch(key) else printable(key)


def _shown(value: Any) -> str:
    if value is None:
        return "not counted"
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else printable(value)
