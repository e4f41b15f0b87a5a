"""How a command says what it did."""

from typing import Any

import orjson

from data_prep.io.errors import printable
from data_prep.io.exit_codes import print_done


def print_summary(summary: dict[str, Any], as_json: bool = False) -> None:
    """Print a summary for a person, one line per fact, or for a script."""
    if as_json:
        print_done(orjson.dumps(summary).decode())
        return
    lines = []
    for key, value in summary.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {_shown(count)}" for name, count in value.items()) or "none"
        lines.append(f"{key.replace('_', ' '):>18}  {_shown(value)}")
    print_done("\n".join(lines))


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else printable(value)
