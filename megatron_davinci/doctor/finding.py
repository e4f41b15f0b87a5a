"""One line of the doctor's. Torch-free."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """`fail`: something does not work; `warn`: something is missing that some work needs. `remedy`: then what to do."""

    name: str
    state: Literal["ok", "warn", "fail"]
    said: str
    remedy: str = ""


def ok(name: str, said: str) -> Finding:
    """All is well."""
    return Finding(name, "ok", said)


def warn(name: str, said: str, remedy: str) -> Finding:
    """Some work will want more."""
    return Finding(name, "warn", said, remedy)


def fail(name: str, said: str, remedy: str) -> Finding:
    """This must be mended first."""
    return Finding(name, "fail", said, remedy)
