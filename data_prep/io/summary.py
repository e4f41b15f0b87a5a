"""How a command says what it did."""

from typing import Any

import orjson


def print_summary(summary: dict[str, Any], as_json: bool = False) -> None:
    """Print a summary for a person, one line per fact, or for a script."""
    if as_json:
        print(orjson.dumps(summary).decode())
        return
    for key, value in summary.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {_shown(count)}" for name, count in value.items()) or "none"
        print(f"{key.replace('_', ' '):>18}  {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
