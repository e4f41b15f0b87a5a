"""Sources of changes: what `davinci data collect` can read."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Protocol

from data_prep.changes.record import Change
from data_prep.io.registry import Registry


class ChangeSource(Protocol):
    """Changes out of one place. `repository` names it; `skipped` counts, by reason, what cannot become a record."""

    repository: str
    skipped: Counter[str]
    on_skip: Callable[[str, str], None]
    """Called with the name and the reason of everything that is skipped."""

    def changes(self) -> Iterator[Change]:
        """Every change, in an order that is always the same."""


SOURCES: Registry[Callable[[str], ChangeSource]] = Registry(
    "source of changes",
    {"git": "data_prep.sources.git:GitSource", "davinci-dev": "data_prep.samples.published_rows:PublishedRows"},
)
"""Classes or functions: an argument of the command line -> a `ChangeSource`."""
