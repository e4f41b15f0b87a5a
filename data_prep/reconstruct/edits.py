"""Edits as an agent would make them: search-replace blocks and file operations, written as Markdown and read back.

The Markdown is the only authority: what is read back from a finished sample is what the replay proof applies.

    ### Edit `path`              ### Create `path` (mode 100644)      ### Delete `path`
    <<<<<<< SEARCH               ```                                  ### Rename `old` to `new`
    old lines                    content                              ### Mode `path` 100755
    =======                      ```                                  ### Gone `path`
    new lines
    >>>>>>> REPLACE              ### Read `path` (mode 100644)
                                 ``` ... ```

Read and Gone are no edits: they say what a merge of the target branch left of a file.

Markers and fences are longer than any run of the same character that starts a line inside. Between edits stand blank
lines, headings of commits (`## ...`) and quoted speech (`> ...`), which change nothing.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

NO_NEWLINE = "\\ No newline at end of file"
_HEADING = re.compile(
    r"### (?:(?P<kind>Edit|Delete|Gone) `(?P<path>[^`]+)`"
    r"|(?P<whole>Create|Read) `(?P<create>[^`]+)` \(mode (?P<mode>\d{6})\)"
    r"|Rename `(?P<old>[^`]+)` to `(?P<new>[^`]+)`|Mode `(?P<changed>[^`]+)` (?P<to>\d{6}))"
)


@dataclass(frozen=True)
class Edit:
    """One step. `text` is the content (create, read) or the replacement (edit); `target` the new path (rename)."""

    kind: Literal["edit", "create", "delete", "rename", "mode", "read", "gone"]
    path: str
    search: str = ""
    text: str = ""
    target: str = ""
    mode: str = ""

    def apply(self, tree: "FileTree") -> None:
        """Change a tree in place. Raises CannotApply: a search text must occur exactly once, as agents demand."""
        if self.kind in ("create", "read"):
            tree[self.path] = TextFile(self.text, self.mode)
            return
        if self.path not in tree:
            raise CannotApply(f"{self.path} is not there")
        file = tree[self.path]
        if self.kind in ("delete", "gone"):
            del tree[self.path]
        elif self.kind == "rename":
            tree[self.target] = tree.pop(self.path)
        elif self.kind == "mode":
            tree[self.path] = TextFile(file.text, self.mode)
        else:
            if not occurs_once(file.text, self.search):
                raise CannotApply(f"the search text is not unique in {self.path}")
            tree[self.path] = TextFile(file.text.replace(self.search, self.text, 1), file.mode)


@dataclass(frozen=True)
class TextFile:
    """A file of a working tree."""

    text: str
    mode: str


FileTree = dict[str, TextFile]


class CannotApply(Exception):
    """An edit does not fit the tree it is applied to."""


def occurs_once(text: str, part: str) -> bool:
    """True when `part` occurs exactly once in `text`, overlapping occurrences counted."""
    first = text.find(part)
    return bool(part) and first >= 0 and text.find(part, first + 1) < 0


def split_lines(text: str) -> list[str]:
    """Lines with their line feeds; only LF ends a line, so CRLF survives."""
    lines = text.split("\n")
    return [line + "\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])


def render_edits(edits: Iterable[Edit]) -> str:
    """Markdown of edits, in order."""
    return "\n".join(_render(edit) for edit in edits)


def _render(edit: Edit) -> str:
    if edit.kind == "edit":
        n = max(7, *(_longest_run(edit.search + "\n" + edit.text, mark) + 1 for mark in "<=>"))
        parts = [
            "<" * n + " SEARCH\n",
            with_newline_marker(edit.search),
            "=" * n + "\n",
            with_newline_marker(edit.text),
            ">" * n + " REPLACE\n",
        ]
        return f"### Edit `{edit.path}`\n{''.join(parts)}"
    if edit.kind in ("create", "read"):
        mark = fence(edit.text)
        heading = f"### {edit.kind.capitalize()} `{edit.path}` (mode {edit.mode})"
        return f"{heading}\n{mark}\n{with_newline_marker(edit.text)}{mark}\n"
    if edit.kind == "rename":
        return f"### Rename `{edit.path}` to `{edit.target}`\n"
    if edit.kind == "mode":
        return f"### Mode `{edit.path}` {edit.mode}\n"
    return f"### {edit.kind.capitalize()} `{edit.path}`\n"


def fence(text: str) -> str:
    """A code fence longer than any inside `text`."""
    return "`" * max(3, _longest_run(text, "`") + 1)


def _longest_run(text: str, mark: str) -> int:
    return max((len(run) for run in re.findall(f"^[ \t]*({re.escape(mark)}+)", text, re.MULTILINE)), default=0)


def with_newline_marker(text: str) -> str:
    """Text as lines: one without a final newline is followed by a line that says so."""
    return text if not text or text.endswith("\n") else f"{text}\n{NO_NEWLINE}\n"


def without_newline_marker(text: str) -> str:
    """Inverse of with_newline_marker."""
    marker = f"\n{NO_NEWLINE}\n"
    return text.removesuffix(marker) if text.endswith(marker) else text


def quote(anonymizer: str) -> str:
    """What a person said, as quoted lines: no line of it can be taken for a heading or for an edit."""
    return "".join(f"> {line}".rstrip(" ") + "\n" for line in anonymizer.strip().split("\n"))


def parse_edits(markdown: str | Iterable[str]) -> list[Edit]:
    """Edits of a text or of its lines: the inverse of render_edits. Raises CannotApply where it is none of ours."""
    lines = iter(split_lines(markdown) if isinstance(markdown, str) else markdown)
    edits = []
    for line in lines:
        if line == "\n" or line.startswith((">", "## ")):
            continue
        match = _HEADING.fullmatch(line.rstrip("\n"))
        if match is None:
            raise CannotApply(f"not a heading of an edit: {line[:80]!r}")
        edits.append(_parse_one(match, lines))
    return edits


def _parse_one(match: re.Match[str], lines: Iterator[str]) -> Edit:
    if match["create"]:
        text = read_until(lines, next(lines, ""))
        return Edit("create" if match["whole"] == "Create" else "read", match["create"], text=text, mode=match["mode"])
    if match["old"]:
        return Edit("rename", match["old"], target=match["new"])
    if match["changed"]:
        return Edit("mode", match["changed"], mode=match["to"])
    if match["kind"] in ("Delete", "Gone"):
        return Edit("delete" if match["kind"] == "Delete" else "gone", match["path"])
    n = len(next(lines, "").removesuffix(" SEARCH\n"))
    search = read_until(lines, "=" * n + "\n")
    return Edit("edit", match["path"], search=search, text=read_until(lines, ">" * n + " REPLACE\n"))


def read_until(lines: Iterator[str], closing: str) -> str:
    """The text up to a closing line, its newline marker resolved. Raises CannotApply where it is not closed."""
    body: list[str] = []
    for line in lines:
        if line == closing:
            if body and body[-1] == NO_NEWLINE + "\n":
                return "".join(body[:-1]).removesuffix("\n")
            return "".join(body)
        body.append(line)
    raise CannotApply("an edit is not closed")
