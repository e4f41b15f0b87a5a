"""Git patches as bytes: their parts by file, and the paths that each touches.

Bytes, because lines of a patch may end, or be broken, in any way; `splitlines` breaks form feeds and CRLF.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from data_prep.io.errors import InputError

_START = b"diff --git "
_NAMES = (b"--- ", b"+++ ", b"rename from ", b"rename to ", b"copy from ", b"copy to ", b"rename old ", b"rename new ")
_ESCAPES = {
    b"n": b"\n",
    b"t": b"\t",
    b'"': b'"',
    b"\\": b"\\",
    b"a": b"\a",
    b"b": b"\b",
    b"f": b"\f",
    b"r": b"\r",
    b"v": b"\v",
}
_HUNK = re.compile(rb"^@@ -\d+(?:,(\d{1,9}))? \+\d+(?:,(\d{1,9}))? @@")
_ESCAPE = re.compile(rb"\\([0-7]{3}|.)", re.DOTALL)


@dataclass(frozen=True)
class PatchPart:
    """The part of a patch that is about one file. `paths`: before and after, where they differ."""

    paths: frozenset[str]
    content: bytes


def parse_patch(patch: bytes) -> list[PatchPart]:
    """The parts of a patch, in order; put together they are the patch. Raises InputError for what is none."""
    starts = [0] if patch.startswith(_START) else []
    starts += [found.end() - len(_START) for found in re.finditer(rb"\n" + _START, patch)]
    if not starts:
        if patch.strip():
            raise InputError("a patch has no line 'diff --git a/... b/...': make it with git diff")
        return []
    ends = [*starts[1:], len(patch)]
    parts = [patch[start:end] for start, end in zip(starts, ends, strict=True)]
    parts[0] = patch[: starts[0]] + parts[0]
    return [PatchPart(_paths(part), part) for part in parts]


def joined(parts: Iterable[PatchPart]) -> bytes:
    """Parts as one patch."""
    return b"".join(part.content for part in parts)


def split_patch(patch: bytes, belongs: Callable[[PatchPart], bool]) -> tuple[bytes, bytes]:
    """The parts that belong, and the others, each as a patch."""
    parts = parse_patch(patch)
    return joined(part for part in parts if belongs(part)), joined(part for part in parts if not belongs(part))


def paths_of(patch: bytes) -> frozenset[str]:
    """Every path that a patch touches, before and after."""
    return frozenset(path for part in parse_patch(patch) for path in part.paths)


def _paths(part: bytes) -> frozenset[str]:
    """All names that stand outside of hunks: git believes those of extended lines, a reader those of the first, and
    git takes a plain `---`, `+++` before the first line or after a hunk for another file.
    """
    found, plain = set[str](), True
    old = new = 0  # lines that are still to come of a hunk
    for line in part.split(b"\n"):
        if old > 0 or new > 0:
            kind = line[:1] or b" "
            old, new = old - (kind in b" -"), new - (kind in b" +")
        elif line.startswith(_START):
            found |= _named_twice(line[len(_START) :])
            plain = False
        elif hunk := _HUNK.match(line):
            old, new = (1 if count is None else int(count) for count in hunk.groups())
            plain = True
        else:
            found |= _named(line, plain)
    if not found or not all(PurePosixPath(path).parts for path in found):
        raise InputError(f"a part of a patch names no file: {part[:200]!r}")
    return frozenset(found)


def _named(line: bytes, plain: bool) -> set[str]:
    """The path that a line of a header names. Where it is `plain`, git guesses whether its first folder is a prefix."""
    name = next((name for name in _NAMES if line.startswith(name)), None)
    if name is None:
        return set()
    words = line[len(name) :]
    words = words if words.startswith(b'"') else words.partition(b"\t")[0]
    prefixed = name in (b"--- ", b"+++ ")
    found = {_path(words, prefixed), _path(words, False) if plain or not prefixed else None}
    return {path for path in found if path}


def _named_twice(words: bytes) -> set[str]:
    """The path of 'a/PATH b/PATH', or of a quoted pair; two different ones stand in lines of their own as well."""
    if words.startswith(b'"'):
        quoted = re.match(rb'("(?:[^"\\]|\\.)*") ("(?:[^"\\]|\\.)*"|b/.*)', words, re.DOTALL)
        return {path for name in quoted.groups() if (path := _path(name, True))} if quoted else set()
    words = words.rstrip(b"\r")
    half = (len(words) - 1) // 2
    if words[:2] == b"a/" and words[half + 1 :] == b"b/" + words[2:half]:
        return {_text(words[2:half])}
    named = words.split(b" b/")
    return {_text(named[0].removeprefix(b"a/")), _text(named[-1])} if len(named) == 2 else set()


def _path(name: bytes, prefixed: bool) -> str | None:
    name = name.rstrip(b"\r")
    if name.startswith(b'"') and name.endswith(b'"'):
        name = _ESCAPE.sub(_unescape, name[1:-1])
    if name == b"/dev/null":
        return None
    return _text(name.partition(b"/")[2] if prefixed else name)


def _unescape(found: re.Match[bytes]) -> bytes:
    code = found[1]
    return bytes([int(code, 8) & 255]) if code.isdigit() else _ESCAPES.get(code, code)


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")
