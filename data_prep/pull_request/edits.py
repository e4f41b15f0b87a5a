"""Edits as an agent would make them: search-replace blocks and file operations, written as Markdown and read back.

The Markdown of an edit is its only authority: `parse_edits(render_edits(edits))` is what the replay proof applies.

    ### Edit `path`              ### Create `path` (mode 100644)      ### Delete `path`
    <<<<<<< SEARCH               ```                                  ### Rename `old` to `new`
    old lines                    content                              ### Mode `path` 100755
    =======                      ```
    new lines
    >>>>>>> REPLACE

Markers and fences are longer than any run of the same character that starts a line inside.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

NO_NEWLINE = "\\ No newline at end of file"
_HEADING = re.compile(
    r"### (?:(?P<kind>Edit|Delete) `(?P<path>[^`]+)`|Create `(?P<create>[^`]+)` \(mode (?P<mode>\d{6})\)"
    r"|Rename `(?P<old>[^`]+)` to `(?P<new>[^`]+)`|Mode `(?P<changed>[^`]+)` (?P<to>\d{6}))"
)


@dataclass(frozen=True)
class Edit:
    """One step. `text` is the new content (create) or the replacement (edit); `target` the new path (rename)."""

    kind: Literal["edit", "create", "delete", "rename", "mode"]
    path: str
    search: str = ""
    text: str = ""
    target: str = ""
    mode: str = ""


@dataclass(frozen=True)
class TextFile:
    """A file of a working tree."""

    text: str
    mode: str


Tree = dict[str, TextFile]


class CannotApply(Exception):
    """An edit does not fit the tree it is applied to."""


def apply_edit(tree: Tree, edit: Edit) -> None:
    """Apply one edit in place. Raises CannotApply: a search text must occur exactly once, as coding agents demand."""
    if edit.kind == "create":
        tree[edit.path] = TextFile(edit.text, edit.mode)
        return
    if edit.path not in tree:
        raise CannotApply(f"{edit.path} is not there")
    file = tree[edit.path]
    if edit.kind == "delete":
        del tree[edit.path]
    elif edit.kind == "rename":
        tree[edit.target] = tree.pop(edit.path)
    elif edit.kind == "mode":
        tree[edit.path] = TextFile(file.text, edit.mode)
    else:
        if not occurs_once(file.text, edit.search):
            raise CannotApply(f"the search text is not unique in {edit.path}")
        tree[edit.path] = TextFile(file.text.replace(edit.search, edit.text, 1), file.mode)


def occurs_once(text: str, part: str) -> bool:
    """True when `part` occurs exactly once in `text`, overlapping occurrences counted."""
    first = text.find(part)
    return bool(part) and first >= 0 and text.find(part, first + 1) < 0


def split_lines(text: str) -> list[str]:
    """Lines with their line feeds; only LF ends a line, so CRLF survives."""
    lines = text.split("\n")
    return [line + "\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])


def render_edits(edits: list[Edit]) -> str:
    """Markdown of edits, in order."""
    return "\n".join(_render(edit) for edit in edits)


def _render(edit: Edit) -> str:
    if edit.kind == "edit":
        n = max(7, *(_longest_run(edit.search + "\n" + edit.text, mark) + 1 for mark in "<=>"))
        parts = ["<" * n + " SEARCH\n", _body(edit.search), "=" * n + "\n", _body(edit.text), ">" * n + " REPLACE\n"]
        return f"### Edit `{edit.path}`\n{''.join(parts)}"
    if edit.kind == "create":
        mark = fence(edit.text)
        return f"### Create `{edit.path}` (mode {edit.mode})\n{mark}\n{_body(edit.text)}{mark}\n"
    if edit.kind == "rename":
        return f"### Rename `{edit.path}` to `{edit.target}`\n"
    if edit.kind == "mode":
        return f"### Mode `{edit.path}` {edit.mode}\n"
    return f"### Delete `{edit.path}`\n"


def fence(text: str) -> str:
    """A code fence longer than any inside `text`."""
    return "`" * max(3, _longest_run(text, "`") + 1)


def _longest_run(text: str, mark: str) -> int:
    return max((len(run) for run in re.findall(f"^[ \t]*({re.escape(mark)}+)", text, re.MULTILINE)), default=0)


def _body(text: str) -> str:
    return text if not text or text.endswith("\n") else f"{text}\n{NO_NEWLINE}\n"


def parse_edits(markdown: str) -> list[Edit]:
    """Inverse of render_edits. Raises CannotApply on anything else."""
    lines = iter(split_lines(markdown))
    edits = []
    for line in lines:
        if line == "\n":
            continue
        match = _HEADING.fullmatch(line.rstrip("\n"))
        if match is None:
            raise CannotApply(f"not a heading of an edit: {line[:80]!r}")
        edits.append(_parse_one(match, lines))
    return edits


def _parse_one(match: re.Match[str], lines: Iterator[str]) -> Edit:
    if match["create"]:
        text = _until(lines, next(lines, ""))
        return Edit("create", match["create"], text=text, mode=match["mode"])
    if match["old"]:
        return Edit("rename", match["old"], target=match["new"])
    if match["changed"]:
        return Edit("mode", match["changed"], mode=match["to"])
    if match["kind"] == "Delete":
        return Edit("delete", match["path"])
    n = len(next(lines, "").removesuffix(" SEARCH\n"))
    search = _until(lines, "=" * n + "\n")
    return Edit("edit", match["path"], search=search, text=_until(lines, ">" * n + " REPLACE\n"))


def _until(lines: Iterator[str], closing: str) -> str:
    body: list[str] = []
    for line in lines:
        if line == closing:
            if body and body[-1] == NO_NEWLINE + "\n":
                return "".join(body[:-1]).removesuffix("\n")
            return "".join(body)
        body.append(line)
    raise CannotApply("an edit is not closed")
