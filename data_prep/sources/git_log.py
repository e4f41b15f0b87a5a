"""Commits as git's log and raw diffs tell them."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from data_prep.changes.record import FileChange

# A mark that no path can hold opens each commit among the raw diff entries; NUL separates everything.
_MARK = f"davinci {secrets.token_hex(16)} /"
LOG_FORMAT = f"{_MARK}%H%x00%P%x00%an%x00%at%x00%ct%x00%B"
_NUM_FIELDS = LOG_FORMAT.count("%x00") + 1


@dataclass(frozen=True)
class LogEntry:
    """One commit. `landed_at` is when it was put where it stands; `files` are there where a diff was asked for."""

    sha: str
    parents: list[str]
    author: str
    authored_at: str
    landed_at: str
    message: str
    files: tuple[FileChange, ...]

    @property
    def subject(self) -> str:
        """The first line of the message."""
        return self.message.partition("\n")[0]

    @property
    def body(self) -> str:
        """What follows the first line."""
        return self.message.partition("\n")[2].strip()


def log_entries(fields: Iterator[str]) -> Iterator[LogEntry]:
    """Commits out of the NUL-separated fields of git log or git diff-tree with LOG_FORMAT."""
    head: list[str] = []
    raw: list[str] = []
    for field in fields:
        if field.startswith(_MARK):
            if head:
                yield _log_entry(head, raw)
            head, raw = [field.removeprefix(_MARK)], []
        elif len(head) < _NUM_FIELDS:
            head.append(field)
        else:
            raw.append(field)
    if head:
        yield _log_entry(head, raw)


def _log_entry(head: list[str], raw: list[str]) -> LogEntry:
    sha, parents, author, authored, landed, message = head
    files = tuple(_file_changes(raw))
    return LogEntry(sha, parents.split(), author, _time(authored), _time(landed), message, files)


def _time(seconds: str) -> str:
    """ISO 8601 in UTC; nothing for what no clock shows."""
    try:
        return datetime.fromtimestamp(int(seconds), UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return ""


def _file_changes(raw: list[str]) -> Iterator[FileChange]:
    """Parse ":old_mode new_mode old_blob new_blob status" NUL path [NUL new path]."""
    fields = iter(raw)
    for field in fields:
        entry = field.lstrip("\n")
        if not entry:  # what separates the message from the diff
            continue
        old_mode, new_mode, old_blob, new_blob, status = entry.removeprefix(":").split(" ")
        old_path = next(fields)
        path = next(fields) if status[0] in "RC" else old_path
        yield FileChange(
            status=status[0],  # type: ignore[arg-type]  # git's own letter
            path=path,
            old_path=old_path,
            old_mode=None if status[0] == "A" else old_mode,
            new_mode=None if status[0] == "D" else new_mode,
            old_blob=None if status[0] == "A" else old_blob,
            new_blob=None if status[0] == "D" else new_blob,
        )
