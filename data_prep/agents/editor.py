"""The tool str_replace_editor: view, create, str_replace, insert, undo_edit on files in a sandbox. Bytes that are not
edited stay as they are, whatever their encoding and line ends."""

from collections.abc import Callable, Mapping
from typing import Any

from data_prep.environments.sandbox.base import Session

_MAX_FILE = 4 << 20  # bytes
_LONGEST_PATH = 4096  # bytes
_AROUND = 4  # lines shown on each side of an edit
_READ = (
    f'[ -e "$0" ] || exit 3; [ -f "$0" ] || exit 4; [ "$(stat -Lc %s -- "$0")" -le {_MAX_FILE} ] || exit 5; [ -r "$0" ]'
)
_PROBLEMS = {
    3: "is not there",
    4: "is no file",
    5: f"is longer than {_MAX_FILE >> 20} MiB: use bash",
}
_LIST = 'cd -- "$0" && find . -maxdepth 2 -not -path "*/.*" -printf "%P\\t%y\\n" | LC_ALL=C sort'
_KINDS = {"d": "/", "l": "@"}


class EditError(ValueError):
    """Why an edit cannot be made, for the model."""


class FileEditor:
    """The editor of one conversation: it knows what can be undone."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._before: dict[str, list[bytes | None]] = {}

    def run(self, arguments: Mapping[str, Any]) -> str:
        """Do a command; returns what the model is told. Raises EditError, and SandboxFailed."""
        commands: dict[str, Callable[[str, Mapping[str, Any]], str]] = {
            "view": self._view,
            "create": self._create,
            "str_replace": self._str_replace,
            "insert": self._insert,
            "undo_edit": self._undo,
        }
        command = commands.get(_text(arguments, "command"))
        if command is None:
            raise EditError(f"command must be one of {', '.join(commands)}")
        path = _text(arguments, "path")
        if not path.startswith("/") or "\0" in path or len(path.encode()) > _LONGEST_PATH:
            raise EditError(f"path must be absolute: /testbed/{path.lstrip('./')[:200]}")
        return command(path, arguments)

    def _view(self, path: str, arguments: Mapping[str, Any]) -> str:
        if self._session.run(["/bin/sh", "-c", 'test -d "$0"', path]).returncode == 0:
            return self._listing(path)
        lines = _lines(_shown(self._read(path)))
        first, last = _view_range(arguments.get("view_range"), len(lines))
        return f"{path}, lines {first} to {last} of {len(lines)}:\n{_numbered(lines, first, last)}"

    def _listing(self, path: str) -> str:
        found = self._session.run(["/bin/sh", "-c", _LIST, path])
        if found.returncode:
            raise EditError(f"{path} cannot be listed: {found.output.strip()[-200:]}")
        entries = [line.rpartition("\t") for line in found.output.split("\n")]
        names = [name + _KINDS.get(kind, "") for name, _, kind in entries if name]
        return f"{path}, up to two levels deep, without hidden files:\n" + "\n".join(names)

    def _create(self, path: str, arguments: Mapping[str, Any]) -> str:
        if self._session.run(["/bin/sh", "-c", 'test -e "$0" || test -L "$0"', path]).returncode == 0:
            raise EditError(f"{path} is there already: edit it with str_replace, or remove it with bash")
        text = _text(arguments, "file_text")
        self._write(path, None, _bytes(text))
        return f"{path} is written."

    def _str_replace(self, path: str, arguments: Mapping[str, Any]) -> str:
        old = _bytes(_text(arguments, "old_str"))
        new = _bytes(_text(arguments, "new_str")) if arguments.get("new_str") is not None else b""
        before = self._read(path)
        if not old:
            raise EditError("old_str is empty: give the text that is replaced, or use insert")
        if old not in before and b"\r\n" in before and b"\r\n" not in old:  # what is shown has no sign of them
            old, new = old.replace(b"\n", b"\r\n"), new.replace(b"\n", b"\r\n")
        count = before.count(old)
        if count != 1:
            raise EditError(_why_not_once(path, before, old, count))
        place = before.index(old)
        self._write(path, before, before[:place] + new + before[place + len(old) :])
        return self._edited(path, before.count(b"\n", 0, place) + 1, new)

    def _insert(self, path: str, arguments: Mapping[str, Any]) -> str:
        before = self._read(path)
        line, new = arguments.get("insert_line"), _bytes(_text(arguments, "new_str"))
        lines = _kept_lines(before)
        if not isinstance(line, int) or isinstance(line, bool) or not 0 <= line <= len(lines):
            raise EditError(f"insert_line must be a number from 0 to {len(lines)}")
        end = b"\r\n" if b"\r\n" in before else b"\n"
        new = new.replace(b"\r\n", b"\n").replace(b"\n", end)
        head = b"".join(lines[:line])
        head += end if head and not head.endswith(b"\n") else b""
        self._write(path, before, head + new + (b"" if new.endswith(b"\n") else end) + b"".join(lines[line:]))
        return self._edited(path, line + 1, new)

    def _undo(self, path: str, arguments: Mapping[str, Any]) -> str:
        if not self._before.get(path):
            raise EditError(f"there is no edit of {path} to undo")
        before = self._before[path].pop()
        if before is None:
            self._session.run(["/bin/rm", "-f", "--", path])
            return f"{path} is removed again."
        self._put(path, before)
        return f"The last edit of {path} is undone."

    def _read(self, path: str) -> bytes:
        checked = self._session.run(["/bin/sh", "-c", _READ, path])
        content = self._session.get(path) if checked.returncode == 0 else None
        if content is None:
            raise EditError(f"{path} {_PROBLEMS.get(checked.returncode, 'cannot be read')}")
        return content

    def _write(self, path: str, before: bytes | None, content: bytes) -> None:
        self._put(path, content)
        self._before.setdefault(path, []).append(before)

    def _put(self, path: str, content: bytes) -> None:
        script = 'mkdir -p -- "$(dirname -- "$0")" && cat > "$0"'
        done = self._session.run(["/bin/sh", "-c", script, path], stdin=content)
        if done.returncode:
            raise EditError(f"{path} cannot be written: {done.output.strip()[-200:] or done.killed}")

    def _edited(self, path: str, line: int, new: bytes) -> str:
        lines = _lines(_shown(self._read(path)))
        last = min(len(lines), line + new.count(b"\n") + _AROUND)
        return f"{path} is edited:\n{_numbered(lines, max(1, line - _AROUND), last)}"


def _text(arguments: Mapping[str, Any], name: str) -> str:
    value = arguments.get(name)
    if not isinstance(value, str):
        raise EditError(f"{name} is missing, or no text")
    return value


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _shown(content: bytes) -> str:
    return content.decode("utf-8", "replace").replace("\r\n", "\n")


def _lines(text: str) -> list[str]:
    lines = text.split("\n")  # str.splitlines knows ends that no editor does
    return lines[:-1] if len(lines) > 1 and not lines[-1] else lines


def _kept_lines(content: bytes) -> list[bytes]:
    lines = [line + b"\n" for line in content.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]


def _view_range(given: Any, count: int) -> tuple[int, int]:
    if given is None:
        return 1, count
    numbers = isinstance(given, list) and len(given) == 2 and all(type(number) is int for number in given)
    first, last = given if numbers else (0, 0)
    last = count if last == -1 else min(last, count)
    if not 1 <= first <= last:
        raise EditError(f"view_range must be [first, last], two line numbers from 1 to {count}; last may be -1")
    return first, last


def _numbered(lines: list[str], first: int, last: int) -> str:
    return "\n".join(f"{number:6}\t{lines[number - 1]}" for number in range(first, last + 1))


def _why_not_once(path: str, content: bytes, old: bytes, count: int) -> str:
    if not count:
        return f"old_str is not in {path}: give it exactly as view shows it, without the line numbers"
    places, at = list[int](), content.find(old)
    while at >= 0 and len(places) < 10:
        places.append(content.count(b"\n", 0, at) + 1)
        at = content.find(old, at + 1)
    return f"old_str is {count} times in {path} (lines {', '.join(map(str, places))}): give more lines around it"
