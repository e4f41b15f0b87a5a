"""Pull requests as daVinci-Dev publishes them (its llm_enhanced_prs), as changes: `davinci data collect source
davinci-dev ROWS.parquet`.

A row has repo_name, repo_description, title, body, related_issue, pr_summary, relevant_files (path, content) and
commits (refined_message, message, diffs of path and patch). What a file becomes is worked out from the patches.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Literal

from data_prep.changes.record import Change, Commit, Conversation, Enhancement, FileChange, Issue, RepositoryFacts
from data_prep.io.errors import DAMAGE
from data_prep.reconstruct.edits import CannotApply, FileTree, TextFile, split_lines
from data_prep.reconstruct.patches import FilePatch
from data_prep.tokenize.chunk import BrokenRecord, Columns
from data_prep.tokenize.inputs import expand, read
from data_prep.tokenize.records import records_of

_MODE = "100644"
_HUNK = re.compile(r"^(@@ -\d+(?:,\d+)? \+\d+(?:,\d+)? @@)")
_NEEDED = ("repo_name", "title", "relevant_files", "commits")
_OTHERS = ("repo_description", "body", "related_issue", "pr_summary", "number", "pr_number")


class PublishedRows:
    """A source of changes: see data_prep.sources.registry. Raises InputError where the rows have other columns."""

    repository = "daVinci-Dev"

    def __init__(self, argument: str) -> None:
        self.on_skip: Callable[[str, str], None] = lambda name, reason: None
        self.skipped: Counter[str] = Counter()
        self._paths = expand([argument])

    def changes(self) -> Iterator[Change]:
        """The change of every row."""
        for chunk in read(self._paths, Columns((_NEEDED,), _OTHERS)):
            for number, row in records_of(chunk):
                try:
                    if isinstance(row, BrokenRecord):
                        raise CannotApply("broken_row")
                    yield change_of_row(row)
                except (CannotApply, *DAMAGE) as error:
                    reason = str(error) if isinstance(error, CannotApply) and "_" in str(error) else "broken_row"
                    self.skipped[reason] += 1
                    self.on_skip(f"{chunk.path}, row {number}", reason)


def change_of_row(row: dict[str, Any]) -> Change:
    """A row as a change. Raises CannotApply where a patch does not fit its file."""
    number = row.get("number") or row.get("pr_number")
    told = [
        row["title"],
        row["repo_name"],
        *(row.get(name) or "" for name in ("body", "repo_description", "pr_summary")),
    ]
    told += [entry.get(name) or "" for entry in row["commits"] for name in ("message", "refined_message")]
    if not all(isinstance(text, str) for text in told) or not row["title"] or not row["repo_name"]:
        raise CannotApply("broken_row")
    if number is not None and (type(number) is not int or not 0 < number < 1 << 53):
        raise CannotApply("broken_row")
    tree: FileTree = {each["path"]: TextFile(each["content"], _MODE) for each in row["relevant_files"]}
    blobs: dict[str, bytes | None] = {}
    commits, messages = [], {}
    for position, entry in enumerate(row["commits"]):
        files = tuple(_file_change(diff, tree, blobs) for diff in entry["diffs"])
        sha = _id(f"{row['repo_name']} {row['title']} {position}", files)
        commits.append(Commit(sha, entry.get("message") or "", "", "", files))
        if entry.get("refined_message"):
            messages[sha] = entry["refined_message"]
    if not commits:
        raise CannotApply("no_commits")
    issue = row.get("related_issue")
    issues = (_issue(issue),) if isinstance(issue, dict) and issue.get("title") else ()
    return Change(
        repository=row["repo_name"],
        kind="merge",
        number=number,
        title=row["title"],
        body=row.get("body") or "",
        base=_id(row["repo_name"], sorted(blobs)),
        head=commits[-1].sha,
        commits=tuple(commits),
        blobs=blobs,
        facts=RepositoryFacts(row.get("repo_description") or "", "Python", None, False, False),
        conversation=Conversation("", False, True, "", None, None, issues=issues),
        enhancement=Enhancement("daVinci-Dev", row.get("pr_summary") or None, messages),
    )


def _file_change(diff: dict[str, Any], tree: FileTree, blobs: dict[str, bytes | None]) -> FileChange:
    """Apply a patch to the tree, and note what the file was and is."""
    path, hunks = diff["path"], _hunks(diff["patch"])
    before = tree.get(path)
    adds = bool(hunks) and all(head.startswith("@@ -0,0 ") for head, *_ in hunks)
    if before is None and not adds:
        raise CannotApply("file_is_missing")
    deletes = bool(hunks) and all(" +0,0 @@" in head for head, *_ in hunks)
    patch = FilePatch(path, path, _MODE if before else None, None if deletes else _MODE, hunks)
    try:
        patch.apply(tree)
    except CannotApply:
        raise CannotApply("patch_does_not_fit") from None
    return _told(path, before, tree.get(path), blobs)


def _told(path: str, before: TextFile | None, after: TextFile | None, blobs: dict[str, bytes | None]) -> FileChange:
    (old_mode, old_blob), (new_mode, new_blob) = (
        (None, None) if file is None else (file.mode, _blob(file, blobs)) for file in (before, after)
    )
    status: Literal["A", "D", "M"] = "A" if before is None else "D" if after is None else "M"
    return FileChange(status, path, path, old_mode, new_mode, old_blob, new_blob)


def _hunks(patch: str) -> list[list[str]]:
    """The hunks of a patch, whose heads say no more than their ranges; what stands before them is not needed."""
    hunks: list[list[str]] = []
    for line in split_lines(patch if patch.endswith("\n") else f"{patch}\n"):
        if match := _HUNK.match(line):
            hunks.append([f"{match[1]}\n"])
        elif hunks:
            hunks[-1].append(line)
    return hunks


def _blob(file: TextFile, blobs: dict[str, bytes | None]) -> str:
    content = file.text.encode()
    blob_id = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    blobs[blob_id] = content
    return blob_id


def _issue(issue: dict[str, Any]) -> Issue:
    comments = ((each.get("author") or "someone", each.get("body") or "") for each in issue.get("comments") or ())
    said = [issue.get("body") or "", *(f"{author}: {body}" for author, body in comments)]
    return Issue(0, issue["title"], "\n\n".join(filter(None, said)), issue.get("author") or "")


def _id(*parts: object) -> str:
    return hashlib.sha1(repr(parts).encode(), usedforsecurity=False).hexdigest()
