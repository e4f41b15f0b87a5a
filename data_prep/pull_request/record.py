"""A change as a source found it: metadata, commits, and the contents of every file it touches, before and after.

A record is complete: nothing that comes after collection needs the repository again. Contents are kept once per blob.
"""

import base64
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from data_prep.errors import InputError

MAX_BLOB_BYTES = 1 << 20  # larger files are named, not included
SYMLINK, SUBMODULE = "120000", "160000"


@dataclass(frozen=True)
class FileChange:
    """One file in one commit, as git's raw diff has it: modes are octal text, blobs are ids, None where absent."""

    status: Literal["A", "M", "D", "R", "T"]
    path: str
    old_path: str
    old_mode: str | None
    new_mode: str | None
    old_blob: str | None
    new_blob: str | None


@dataclass(frozen=True)
class Commit:
    """One commit of a change."""

    sha: str
    message: str
    author: str
    authored_at: str
    files: tuple[FileChange, ...]


@dataclass(frozen=True)
class Change:
    """A pull request, or a plain commit taken as one. `base` is the parent of the first commit.

    `kind`: merge (merged with a merge commit), squash (squashed into one commit), commit (no pull request at all).
    `blobs`: id -> bytes, or None for a file above MAX_BLOB_BYTES.
    """

    repository: str
    kind: Literal["merge", "squash", "commit"]
    number: int | None
    title: str
    body: str
    base: str
    head: str
    commits: tuple[Commit, ...]
    blobs: dict[str, bytes | None]

    @property
    def id(self) -> str:
        """Unique among all records: repository and pull request number, or commit."""
        return f"{self.repository}#{self.number}" if self.number is not None else f"{self.repository}@{self.head}"

    def to_json(self) -> dict[str, Any]:
        """A JSON object; contents that are not UTF-8 are kept as base64."""
        return {**asdict(self), "blobs": {key: _encode_blob(blob) for key, blob in self.blobs.items()}}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """Inverse of to_json; InputError when `record` is none of ours."""
        try:
            commits = tuple(
                Commit(**{**commit, "files": tuple(FileChange(**file) for file in commit["files"])})
                for commit in record["commits"]
            )
            blobs = {key: _decode_blob(blob) for key, blob in record["blobs"].items()}
            return cls(**{**record, "commits": commits, "blobs": blobs})
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"not a change as davinci data collect writes it ({error}): collect it again") from None


def _encode_blob(blob: bytes | None) -> dict[str, str] | None:
    if blob is None:
        return None
    try:
        return {"text": blob.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(blob).decode()}


def _decode_blob(entry: dict[str, str] | None) -> bytes | None:
    if entry is None:
        return None
    return entry["text"].encode() if "text" in entry else base64.b64decode(entry["base64"])
