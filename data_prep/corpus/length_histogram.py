"""How long the documents of corpora are: counts per power of two, as text, JSON or a picture."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from data_prep.io.errors import InputError
from data_prep.io.files import part_of, publish

_BAR = 40  # characters of the longest bar


class LengthHistogram:
    """Documents and tokens by length: bin i holds lengths from 2**i to 2**(i + 1) - 1."""

    def __init__(self, lengths: npt.NDArray[np.int64]) -> None:
        lengths = lengths[lengths > 0]
        bins = np.frexp(lengths.astype(np.float64))[1] - 1
        count = int(bins.max()) + 1 if len(bins) else 0
        self._documents = np.bincount(bins, minlength=count)
        self._tokens = np.bincount(bins, weights=lengths, minlength=count).astype(np.int64)
        self._first = int(np.flatnonzero(self._documents)[0]) if count else 0

    @classmethod
    def of_rows(cls, rows: Iterable[dict[str, int]]) -> Self:
        """The sum of histograms, from their rows."""
        total = cls(np.zeros(0, np.int64))
        for row in rows:
            number = row["from"].bit_length() - 1
            missing = max(0, number + 1 - len(total._documents))
            total._documents = np.pad(total._documents, (0, missing))
            total._tokens = np.pad(total._tokens, (0, missing))
            total._documents[number] += row["documents"]
            total._tokens[number] += row["tokens"]
        filled = np.flatnonzero(total._documents)
        total._first = int(filled[0]) if len(filled) else 0
        return total

    def as_json(self) -> list[dict[str, int]]:
        """A row per bin: from, to, documents, tokens."""
        return [
            {"from": 2**i, "to": 2 ** (i + 1) - 1, "documents": int(self._documents[i]), "tokens": int(self._tokens[i])}
            for i in range(self._first, len(self._documents))
        ]

    def as_text(self) -> str:
        """A table with a bar for the tokens of each bin."""
        most = max(self._tokens, default=1)
        lines = [f"{'length':>21} {'documents':>12} {'tokens':>15}"]
        for row in self.as_json():
            length = f"{row['from']:,}-{row['to']:,}"
            bar = "#" * round(_BAR * row["tokens"] / most)
            lines.append(f"{length:>21} {row['documents']:>12,} {row['tokens']:>15,} {bar}".rstrip())
        return "\n".join(lines)

    def draw(self, path: Path, seq_length: int) -> None:
        """Write a PNG; it appears by rename, in place of one that is there. Raises InputError without matplotlib."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise InputError("a picture needs matplotlib: pip install matplotlib, or leave --histogram out") from None
        rows: list[dict[str, Any]] = self.as_json()
        figure = Figure(figsize=(8, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for axes, what in ((left, "documents"), (right, "tokens")):
            axes.bar(range(len(rows)), [row[what] for row in rows], width=0.9)
            axes.set_xticks(range(len(rows)), [f"{row['from']:,}" for row in rows], rotation=90)
            axes.set_xlabel("length from (tokens)")
            axes.set_title(what)
            axes.axvline(np.log2(seq_length) - self._first - 0.5, color="gray", linestyle="--", linewidth=1)
        part = part_of(path)
        part.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(part, format="png", dpi=120)
        publish(part, path)
