"""What a change's files hold: the tree of text files at its base and at its head, and what can only be named."""

from dataclasses import dataclass

from data_prep.changes.record import SUBMODULE, Change, FileChange
from data_prep.reconstruct.edits import FileTree, TextFile


class Rejected(Exception):
    """This change cannot become a sample; the message is the reason, one word of a small set."""


@dataclass(frozen=True)
class OpaqueFile:
    """A file whose contents cannot be shown, and why: binary_file, not_utf8 or file_too_large."""

    reason: str


def content_of(change: Change, blob_id: str | None, mode: str | None) -> TextFile | OpaqueFile:
    """A file's text; a submodule reads as git shows it, a symbolic link as the path that it leads to."""
    assert blob_id is not None and mode is not None
    if mode == SUBMODULE:
        return TextFile(f"Subproject commit {blob_id}\n", mode)
    blob = change.blobs[blob_id]
    if blob is None:
        return OpaqueFile("file_too_large")
    if b"\0" in blob:
        return OpaqueFile("binary_file")
    try:
        return TextFile(blob.decode(), mode)
    except UnicodeDecodeError:
        return OpaqueFile("not_utf8")


def opaque_paths(change: Change) -> dict[str, str]:
    """path -> reason of every path that is opaque at some time of the change; renames carry it along."""
    found: dict[str, str] = {}
    for commit in change.commits:
        for file in commit.files:
            for side in (content_of(change, blob, mode) for blob, mode in _sides(file)):
                if isinstance(side, OpaqueFile):
                    found[file.path] = found[file.old_path] = side.reason
    while more := {
        path: found[other]
        for commit in change.commits
        for file in commit.files
        for path, other in ((file.path, file.old_path), (file.old_path, file.path))
        if other in found and path not in found
    }:
        found |= more
    return found


def _sides(file: FileChange) -> list[tuple[str, str | None]]:
    sides = ((file.old_blob, file.old_mode), (file.new_blob, file.new_mode))
    return [(blob, mode) for blob, mode in sides if blob is not None]


def text_of(change: Change, blob_id: str | None, mode: str | None) -> TextFile:
    """A file's text; Rejected with the reason where it has none."""
    content = content_of(change, blob_id, mode)
    if isinstance(content, OpaqueFile):
        raise Rejected(content.reason)
    return content


def versions_of(change: Change, file: FileChange) -> tuple[TextFile | None, TextFile | None]:
    """A file before and after a commit, None where it is absent; Rejected with the reason where it holds no text."""
    before = None if file.old_blob is None else text_of(change, file.old_blob, file.old_mode)
    return before, None if file.new_blob is None else text_of(change, file.new_blob, file.new_mode)


def files_at_base(change: Change, leave_out: frozenset[str] = frozenset()) -> FileTree:
    """What each touched path held before the first commit that touches it, where it held anything."""
    seen: set[str] = set(leave_out)
    tree: FileTree = {}
    for commit in change.commits:
        for file in commit.files:
            if file.old_path not in seen and file.old_blob is not None:
                tree[file.old_path] = text_of(change, file.old_blob, file.old_mode)
            seen |= {file.old_path, file.path}
    return tree


def files_at_head(change: Change, leave_out: frozenset[str] = frozenset()) -> FileTree:
    """What each touched path holds after the last commit, where it holds anything."""
    tree: dict[str, FileChange] = {}
    for commit in change.commits:
        for file in commit.files:
            if file.status in "DR":
                tree.pop(file.old_path, None)
        tree.update({file.path: file for file in commit.files if file.status != "D" and file.path not in leave_out})
    return {path: text_of(change, file.new_blob, file.new_mode) for path, file in tree.items()}
