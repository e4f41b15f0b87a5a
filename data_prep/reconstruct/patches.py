"""Unified diffs, as git writes them, and read back: of one file in one commit.

rename from old/path         deleted file mode 100644        <pr_diff_hunk>
rename to new/path           new file mode 100644            @@ -1,3 +1,4 @@
old mode 100644                                               context
new mode 100755                                              -old line
                                                             +new line
"""

import re
from dataclasses import dataclass, field

from data_prep.reconstruct.edits import NO_NEWLINE, CannotApply, FileTree, TextFile, split_lines
from data_prep.reconstruct.line_changes import LineChange, hunks_of

PATCH_CONTEXT_LINES = 3
_RANGE = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@\n")


@dataclass(frozen=True)
class FilePatch:
    """What happens to the file at `path`. `before` is None for a new file, `after` for one that is deleted: modes.

    `old_path` differs from `path` where it is renamed; `hunks` are the lines of each, headed by its range.
    """

    path: str
    old_path: str
    before: str | None
    after: str | None
    hunks: list[list[str]] = field(default_factory=list)

    def header(self) -> str:
        """What git says before the hunks."""
        if self.before is None:
            return f"new file mode {self.after}\n"
        if self.after is None:
            return f"deleted file mode {self.before}\n"
        renamed = f"rename from {self.old_path}\nrename to {self.path}\n" if self.old_path != self.path else ""
        return (f"old mode {self.before}\nnew mode {self.after}\n" if self.before != self.after else "") + renamed

    def apply(self, tree: FileTree) -> None:
        """Change a tree in place. Raises CannotApply where the file is not what the patch expects."""
        file = TextFile("", "") if self.before is None else tree.pop(self.old_path, None)
        if file is None:
            raise CannotApply(f"{self.old_path} is not there")
        text = _patched(split_lines(file.text), self.hunks)
        if self.after is not None:
            tree[self.path] = TextFile(text, self.after or file.mode)


def file_patch(path: str, old_path: str, before: TextFile | None, after: TextFile | None) -> FilePatch:
    """The patch between two versions of a file, one of which may be absent."""
    old, new = (split_lines(file.text) if file else [] for file in (before, after))
    hunks = [_hunk_lines(hunk, old, new) for hunk in hunks_of(old, new, PATCH_CONTEXT_LINES)]
    return FilePatch(path, old_path, before.mode if before else None, after.mode if after else None, hunks)


def _hunk_lines(hunk: list[LineChange], old: list[str], new: list[str]) -> list[str]:
    first, last = max(0, hunk[0].old_start - PATCH_CONTEXT_LINES), min(len(old), hunk[-1].old_end + PATCH_CONTEXT_LINES)
    new_first = hunk[0].new_start - (hunk[0].old_start - first)
    lines = []
    at = first
    for change in hunk:
        lines += [" " + line for line in old[at : change.old_start]]
        lines += ["-" + line for line in old[change.old_start : change.old_end]]
        lines += ["+" + line for line in new[change.new_start : change.new_end]]
        at = change.old_end
    lines += [" " + line for line in old[at:last]]
    new_count = sum(line[0] != "-" for line in lines)
    head = f"@@ -{_range(first, last - first)} +{_range(new_first, new_count)} @@\n"
    return [head, *(line if line.endswith("\n") else f"{line}\n{NO_NEWLINE}\n" for line in lines)]


def _range(start: int, count: int) -> str:
    # As git and POSIX diff have it: an empty range is named by the line before, a single line without its count.
    return f"{start + 1}" if count == 1 else f"{start + 1 if count else start},{count}"


def read_patch_header(path: str, lines: list[str]) -> FilePatch:
    """The patch of the file at `path` as its header has it, without hunks yet. Raises CannotApply where it is none."""
    old_path, before, after = path, "", ""
    new_file = deleted = False
    for line in lines:
        if line.startswith("new file mode "):
            new_file, after = True, line[14:-1]
        elif line.startswith("deleted file mode "):
            deleted, before = True, line[18:-1]
        elif line.startswith("old mode "):
            before = line[9:-1]
        elif line.startswith("rename from "):
            old_path = line[12:-1]
        elif line.startswith("new mode "):
            after = line[9:-1]
        elif not line.startswith("rename to "):
            raise CannotApply(f"not a line of a patch: {line[:80]!r}")
    return FilePatch(path, old_path, None if new_file else before, None if deleted else after)


def _patched(old: list[str], hunks: list[list[str]]) -> str:
    """The new text. Every context line and every line taken out must be the old one's."""
    new: list[str] = []
    at = 0
    for head, *lines in hunks:
        match = _RANGE.fullmatch(head)
        if match is None:
            raise CannotApply(f"not the range of a hunk: {head[:80]!r}")
        start, count = int(match[1]), 1 if match[2] is None else int(match[2])
        first = start - 1 if count else start
        if first < at:
            raise CannotApply("hunks overlap")
        new += old[at:first]
        at = first
        for sign, line in _signed(lines):
            if sign != "+":
                if at >= len(old) or old[at] != line:
                    raise CannotApply(f"line {at + 1} is not what the hunk expects")
                at += 1
            if sign != "-":
                new.append(line)
        if at != first + count:
            raise CannotApply("a hunk is not as long as its range")
    return "".join(new + old[at:])


def _signed(lines: list[str]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for line in lines:
        if line == NO_NEWLINE + "\n" and found:
            found[-1] = (found[-1][0], found[-1][1].removesuffix("\n"))
        elif line[0] in " +-":
            found.append((line[0], line[1:]))
        else:
            raise CannotApply(f"not a line of a hunk: {line[:80]!r}")
    return found
