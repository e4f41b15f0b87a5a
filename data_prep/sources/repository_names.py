"""Names of repositories as hosts have them."""

import re
from typing import Any

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}/[A-Za-z0-9_.-]{1,100}")


def is_repository_name(value: Any) -> bool:
    """True for OWNER/NAME in the form that GitHub allows."""
    return isinstance(value, str) and bool(_NAME.fullmatch(value)) and not {".", ".."} & set(value.split("/"))
