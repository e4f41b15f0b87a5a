"""Which lines differ between two versions of a file, grouped as hunks."""

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

_MOST_LINES_EXACT = 4000


class LineChange(NamedTuple):
    """Lines [old_start, old_end) became [new_start, new_end); one of the two may be empty."""

    old_start: int
    old_end: int
    new_start: int
    new_end: int


def hunks_of(old: Sequence[str], new: Sequence[str], context: int) -> list[list[LineChange]]:
    """Changes from top to bottom; those whose contexts would meet are one hunk."""
    hunks: list[list[LineChange]] = []
    for change in _changes(old, new):
        if hunks and change.old_start - hunks[-1][-1].old_end <= 2 * context:
            hunks[-1].append(change)
        else:
            hunks.append([change])
    return hunks


def _changes(old: Sequence[str], new: Sequence[str]) -> list[LineChange]:
    start, shorter = 0, min(len(old), len(new))
    while start < shorter and old[start] == new[start]:
        start += 1
    same = 0  # at the end; the matcher's time grows with what it is given
    while same < shorter - start and old[-1 - same] == new[-1 - same]:
        same += 1
    some, other = old[start : len(old) - same], new[start : len(new) - same]
    # Leaving out lines that are frequent makes long diffs quick, and patches of repetitive files needlessly large.
    matcher = SequenceMatcher(None, some, other, autojunk=len(some) + len(other) > _MOST_LINES_EXACT)
    return [
        LineChange(start + i1, start + i2, start + j1, start + j2)
        for tag, i1, i2, j1, j2 in matcher.get_opcodes()
        if tag != "equal"
    ]
