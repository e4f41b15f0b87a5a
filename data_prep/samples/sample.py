"""The record that flows through the pipeline after a source: one training document and where it came from."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sample:
    """One training document.

    `tokens` is its length under the tokenizer of the length filter, where one ran.
    """

    id: str
    text: str
    source: str
    meta: dict[str, Any] = field(default_factory=dict)
    tokens: int | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object without the fields that are absent."""
        return {key: value for key, value in asdict(self).items() if value is not None}
