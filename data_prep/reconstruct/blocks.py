"""From two versions of a file to search-replace blocks, each unique in the file as it then is."""

from bisect import bisect_left

from data_prep.reconstruct.edits import Edit, occurs_once, split_lines
from data_prep.reconstruct.line_changes import hunks_of

EDIT_CONTEXT_LINES = 2  # on either side at least, where the file has them; more where the text is not unique


def block_edits(path: str, before: str, after: str) -> list[Edit]:
    """Blocks that turn `before` (not empty) into `after`, from top to bottom."""
    old, new = split_lines(before), split_lines(after)
    edits = []
    for hunk in hunks_of(old, new, EDIT_CONTEXT_LINES):
        old_start, old_end, hunk_start, hunk_end = (
            hunk[0].old_start,
            hunk[-1].old_end,
            hunk[0].new_start,
            hunk[-1].new_end,
        )
        current = new[:hunk_start] + old[old_start:]  # hunks above are applied, those below are not
        first, last = _unique_window(current, hunk_start, hunk_start + old_end - old_start)
        above, below = current[first:hunk_start], current[hunk_start + old_end - old_start : last]
        edits.append(
            Edit(
                "edit",
                path,
                search="".join(current[first:last]),
                text="".join(above + new[hunk_start:hunk_end] + below),
            )
        )
    return edits


def _unique_window(lines: list[str], start: int, end: int) -> tuple[int, int]:
    """The smallest window around [start, end), grown evenly, whose text occurs once in the file."""
    text = "".join(lines)

    def window(context: int) -> tuple[int, int]:
        return max(0, start - context), min(len(lines), end + context)

    def is_unique(context: int) -> bool:
        first, last = window(context)
        return (first, last) == (0, len(lines)) or occurs_once(text, "".join(lines[first:last]))

    # A window that holds a unique one is unique: double, then bisect.
    enough = EDIT_CONTEXT_LINES
    while not is_unique(enough):
        enough *= 2
    if enough == EDIT_CONTEXT_LINES:
        return window(enough)
    contexts = range(enough // 2 + 1, enough + 1)
    return window(contexts[bisect_left(contexts, True, key=is_unique)])
