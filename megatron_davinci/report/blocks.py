"""What a section of a report is made of. A page renders each kind by the template macro of its `kind`. Torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True)
class ShownNumber:
    """A number with the `text` that shows it, and where it is from: "run/metrics.jsonl: loss, step 132"."""

    value: float
    text: str
    source: str


Cell = str | ShownNumber | None


@dataclass(frozen=True)
class Paragraph:
    kind: ClassVar[str] = "paragraph"
    text: str


@dataclass(frozen=True)
class Alarm:
    """Something that a person should look at: what was measured, and what helps."""

    kind: ClassVar[str] = "alarm"
    name: str
    value: ShownNumber
    said: str
    remedy: str


@dataclass(frozen=True)
class Table:
    """`head` names the columns; the first cell of each row names the row."""

    kind: ClassVar[str] = "table"
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Bars:
    """Rows of (label, number), drawn with lengths in proportion to the numbers."""

    kind: ClassVar[str] = "bars"
    caption: str
    rows: Sequence[tuple[str, ShownNumber]]

    @property
    def longest(self) -> float:
        """The number that fills the width."""
        return max([number.value for _, number in self.rows], default=0.0) or 1.0


@dataclass(frozen=True)
class Text:
    """A text to read, behind its title. One that is longer than fits says how much is left out."""

    kind: ClassVar[str] = "text"
    title: str
    text: str


@dataclass(frozen=True)
class Axis:
    """What a curve can be drawn over: optimizer steps, tokens consumed, hours of training. (points,) each."""

    step: Sequence[float]
    tokens: Sequence[float | None]
    hours: Sequence[float | None]


@dataclass(frozen=True)
class ChartCurve:
    """`mean` (points,) over `axis`, None where nothing was measured; where a point is of several steps, `low` and
    `high` are the least and the most of them."""

    label: str
    axis: Axis
    mean: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """Curves in one picture; `logarithmic`: over powers of ten."""

    kind: ClassVar[str] = "chart"
    title: str
    unit: str
    curves: Sequence[ChartCurve]
    logarithmic: bool = False


@dataclass(frozen=True)
class Fact:
    """A part of what is known of a response or a prompt."""

    name: str
    value: str | ShownNumber


@dataclass(frozen=True)
class ShownResponse:
    """A response to read: its `thought`, the `rest` of it, and facts; `is_correct` None where nobody knows."""

    title: str
    thought: str
    rest: str
    facts: Sequence[Fact]
    is_correct: bool | None


@dataclass(frozen=True)
class Prompt:
    """A prompt to read, with the responses to it."""

    kind: ClassVar[str] = "prompt"
    title: str
    before: str
    truth: str | None
    replies: Sequence[ShownResponse]


@dataclass(frozen=True)
class PageSection:
    """A titled part of a page."""

    title: str
    blocks: Sequence[Any] = field(default_factory=list)

    @property
    def charts(self) -> list[Chart]:
        """The pictures among the blocks."""
        return [block for block in self.blocks if isinstance(block, Chart)]
