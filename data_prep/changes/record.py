"""A change as a source found it: metadata, what people said, commits, and every file it touches, before and after.

A record is complete: nothing that comes after collection needs the repository again. Contents are kept once per blob.
"""

import base64
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

from data_prep.changes.field_types import check_fields
from data_prep.io.errors import DAMAGE, InputError

RECORD_FORMAT = 2  # of records on disk; another one is refused
MAX_BLOB_BYTES = 1 << 20  # larger files are named, not included
SUBMODULE = "160000"
_WHERE_KNOWN = (
    "origin",
    "landed_at",
    "licenses",
    "structure",
    "of_swe_bench",
)  # left out of records where they are not
GHOST = "ghost"  # GitHub's name for an account that was deleted


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
    """One commit of a change.

    A `merge` brought the target branch in: `files` are then those of the change's own files that it altered, and
    `conflict` says that a person, and not git, decided what one of them holds.
    """

    sha: str
    message: str
    author: str
    authored_at: str
    files: tuple[FileChange, ...]
    merge: bool = False
    conflict: bool = False


@dataclass(frozen=True)
class RepositoryFacts:
    """What the host says about a repository; `source` is the name of the one that a fork goes back to, `license` an
    SPDX id."""

    description: str
    language: str | None
    stars: int | None
    archived: bool
    fork: bool
    topics: tuple[str, ...] = ()
    source: str | None = None
    license: str | None = None


@dataclass(frozen=True)
class Issue:
    """An issue that a pull request closes; `repository` is where it stands."""

    number: int
    title: str
    body: str
    author: str
    repository: str = ""


@dataclass(frozen=True)
class Event:
    """Something that a person said about a pull request; a review's own comments carry its id in `review`.

    `state` is a review's verdict (APPROVED, CHANGES_REQUESTED, COMMENTED, DISMISSED); a review comment stands at
    `path`, `line` and `diff_hunk`, and answers the comment `reply_to`.
    """

    kind: Literal["comment", "review", "review_comment"]
    id: int
    at: str
    author: str
    text: str
    bot: bool = False
    state: str | None = None
    review: int | None = None
    reply_to: int | None = None
    path: str | None = None
    line: int | None = None
    diff_hunk: str | None = None


@dataclass(frozen=True)
class Conversation:
    """What the host knows of a pull request beyond its code. `recorded_base` is the host's base commit, not ours."""

    author: str
    bot: bool
    merged: bool
    created_at: str
    merged_at: str | None
    recorded_base: str | None
    labels: tuple[str, ...] = ()
    issues: tuple[Issue, ...] = ()
    events: tuple[Event, ...] = ()


@dataclass(frozen=True)
class Enhancement:
    """What a language model wrote: a summary of the whole, and a fuller message for each terse commit, by sha."""

    model: str
    summary: str | None
    messages: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """A pull request, or a plain commit taken as one. `base` is the parent of the first commit.

    `kind`: merge (merged with a merge commit), squash (squashed into one commit), rebase (its commits put on top),
    commit (no pull request at all). `blobs`: id -> bytes, or None for a file above MAX_BLOB_BYTES. `facts` and
    `conversation` are there where a host was asked. `origin` names a source that is neither git nor GitHub.
    `landed_at` is when it came to the target branch, `licenses` are SPDX ids of the repository's licences, `structure`
    the tree of its files at the base. `of_swe_bench`: the history holds commits that SWE-bench Verified starts from.
    """

    repository: str
    kind: Literal["merge", "squash", "rebase", "commit"]
    number: int | None
    title: str
    body: str
    base: str
    head: str
    commits: tuple[Commit, ...]
    blobs: dict[str, bytes | None]
    facts: RepositoryFacts | None = None
    conversation: Conversation | None = None
    enhancement: Enhancement | None = None
    origin: str | None = None
    landed_at: str | None = None
    licenses: tuple[str, ...] = ()
    structure: str | None = None
    of_swe_bench: bool = False

    @property
    def id(self) -> str:
        """Unique among all records: repository and pull request number, or commit."""
        return f"{self.repository}#{self.number}" if self.number is not None else f"{self.repository}@{self.head}"

    @property
    def own_commits(self) -> tuple[Commit, ...]:
        """The commits that are no merges of the target branch."""
        return tuple(commit for commit in self.commits if not commit.merge)

    @property
    def paths(self) -> set[str]:
        """Every path that the change itself touches, before and after."""
        return {path for commit in self.own_commits for file in commit.files for path in (file.path, file.old_path)}

    @property
    def net_paths(self) -> set[str]:
        """The paths of `paths` that hold something else after the change's own commits than before them: what is added
        and taken away again has no part in the difference.
        """
        before: dict[str, tuple[str | None, str | None]] = {}
        after: dict[str, tuple[str | None, str | None]] = {}
        for commit in self.own_commits:
            # In one commit files may change places: all that it takes away goes before what it puts there.
            for file in commit.files:
                if file.status != "A":
                    before.setdefault(file.old_path, (file.old_mode, file.old_blob))
                    after[file.old_path] = (None, None)
            for file in commit.files:
                before.setdefault(file.path, (None, None))
                after[file.path] = (file.new_mode, file.new_blob)
        return {path for path, state in after.items() if state != before[path]}

    def to_json(self) -> dict[str, Any]:
        """An object for orjson, which takes the dataclasses in it; contents that are not UTF-8 are kept as base64."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            "format": RECORD_FORMAT,
            **{name: value for name, value in held.items() if value or name not in _WHERE_KNOWN},
            "blobs": {key: _encode_blob(blob) for key, blob in self.blobs.items()},
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """Inverse of to_json; InputError when `record` is none of ours, or of another version."""
        if record.get("format") != RECORD_FORMAT:
            raise InputError(
                f"the record is of format {record.get('format')}, this version reads {RECORD_FORMAT}: collect it again"
            )
        held = {name: value for name, value in record.items() if name != "format"}
        try:
            held["commits"] = tuple(map(_commit, held["commits"]))
            held["blobs"] = {key: _decode_blob(blob) for key, blob in held["blobs"].items()}
            held["licenses"] = tuple(held.get("licenses", ()))
            if facts := held.get("facts"):
                held["facts"] = RepositoryFacts(**{**facts, "topics": tuple(facts["topics"])})
            if conversation := held.get("conversation"):
                held["conversation"] = _conversation(conversation)
            if enhancement := held.get("enhancement"):
                held["enhancement"] = Enhancement(**enhancement)
            change = cls(**held)
            check_fields(change)
            return change
        except DAMAGE as error:
            raise BrokenChange(f"not a change as davinci data collect writes it ({error}): collect it again") from None


class BrokenChange(InputError):
    """A record of this version that holds something else than a change."""


def _commit(entry: dict[str, Any]) -> Commit:
    return Commit(**{**entry, "files": tuple(FileChange(**file) for file in entry["files"])})


def _conversation(entry: dict[str, Any]) -> Conversation:
    issues = tuple(Issue(**issue) for issue in entry["issues"])
    events = tuple(Event(**event) for event in entry["events"])
    return Conversation(**{**entry, "labels": tuple(entry["labels"]), "issues": issues, "events": events})


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
