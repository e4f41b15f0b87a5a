"""A change as an agent would make it: the files it reads at the base, then edits, commit by commit."""

from dataclasses import dataclass

from data_prep.pull_request.blocks import block_edits
from data_prep.pull_request.edits import CannotApply, Edit, TextFile, Tree, apply_edit
from data_prep.pull_request.record import SUBMODULE, SYMLINK, Change, Commit, FileChange


class Rejected(Exception):
    """This change cannot become a sample; the message is the reason, one word of a small set."""


@dataclass(frozen=True)
class Step:
    """One commit: what was said, and the edits."""

    message: str
    edits: list[Edit]


@dataclass(frozen=True)
class Reconstruction:
    """`relevant_files`: path -> complete content at the base, of every file the change touches and the base has."""

    relevant_files: dict[str, str]
    steps: list[Step]


def reconstruct(change: Change) -> Reconstruction:
    """Rebuild a change. Raises Rejected where it cannot be told as edits of text files."""
    tree = files_at_base(change)
    relevant = {path: file.text for path, file in tree.items()}
    steps = []
    for commit in change.commits:
        edits = _commit_edits(change, commit, tree)
        try:
            for edit in edits:
                apply_edit(tree, edit)
        except CannotApply:
            raise Rejected("does_not_replay") from None
        steps.append(Step(commit.message, edits))
    return Reconstruction(relevant, steps)


def _commit_edits(change: Change, commit: Commit, tree: Tree) -> list[Edit]:
    # Renames first, so that a path that one file leaves and another one takes is free by then.
    changes = sorted(commit.files, key=lambda file: (file.status != "R", file.status != "D"))
    return [edit for file in changes for edit in _file_edits(change, file, tree)]


def _file_edits(change: Change, file: FileChange, tree: Tree) -> list[Edit]:
    if file.status == "D":
        return [Edit("delete", file.path)]
    after = _text_file(change, file.new_blob, file.new_mode)
    if file.status == "A":
        return [Edit("create", file.path, text=after.text, mode=after.mode)]
    before = tree.get(file.old_path)
    if before is None:
        raise Rejected("does_not_replay")
    edits = []
    if file.status == "R":
        edits.append(Edit("rename", file.old_path, target=file.path))
    if before.mode != after.mode and before.text:
        edits.append(Edit("mode", file.path, mode=after.mode))
    if before.text != after.text and before.text:
        edits += block_edits(file.path, before.text, after.text)
    elif not before.text:  # nothing to search for in an empty file
        edits.append(Edit("create", file.path, text=after.text, mode=after.mode))
    return edits


def files_at_base(change: Change) -> Tree:
    """What each touched path held before the first commit that touches it, where it held anything."""
    seen: set[str] = set()
    tree: Tree = {}
    for commit in change.commits:
        for file in commit.files:
            if file.old_path not in seen and file.old_blob is not None:
                tree[file.old_path] = _text_file(change, file.old_blob, file.old_mode)
            seen |= {file.old_path, file.path}
    return tree


def files_at_head(change: Change) -> Tree:
    """What each touched path holds after the last commit, where it holds anything."""
    tree: dict[str, FileChange] = {}
    for commit in change.commits:
        for file in commit.files:
            if file.status in "DR":
                tree.pop(file.old_path, None)
        tree.update({file.path: file for file in commit.files if file.status != "D"})
    return {path: _text_file(change, file.new_blob, file.new_mode) for path, file in tree.items()}


def _text_file(change: Change, blob_id: str | None, mode: str | None) -> TextFile:
    """A file's text; Rejected when it is none (binary, too large, a link, a submodule)."""
    assert blob_id is not None and mode is not None
    if mode in (SUBMODULE, SYMLINK):
        raise Rejected("submodule" if mode == SUBMODULE else "symbolic_link")
    blob = change.blobs[blob_id]
    if blob is None:
        raise Rejected("file_too_large")
    if b"\0" in blob:
        raise Rejected("binary_file")
    try:
        return TextFile(blob.decode(), mode)
    except UnicodeDecodeError:
        raise Rejected("not_utf8") from None
