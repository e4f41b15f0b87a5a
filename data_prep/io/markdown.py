"""Values of others in pages of Markdown."""

from typing import Any

from data_prep.io.errors import printable

_MOST_CHARACTERS = 100


def cell(value: Any) -> str:
    """A text or a number as the cell of a table: it ends no cell and no line, and is no markup. Others are left out."""
    if not isinstance(value, str | int | float):
        return ""
    shown = printable(value, _MOST_CHARACTERS)
    return "".join(f"\\{each}" if each in "|<>`[]#\\" else each for each in shown)
