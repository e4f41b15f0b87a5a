"""A change as an agent would make it: the files it reads at the base, then edits, commit by commit."""

from dataclasses import dataclass

from data_prep.changes.record import Change, Commit, FileChange
from data_prep.reconstruct.blocks import block_edits
from data_prep.reconstruct.contents import Rejected, files_at_base, opaque_paths, text_of
from data_prep.reconstruct.edits import CannotApply, Edit, FileTree


@dataclass(frozen=True)
class Step:
    """One commit: what was said, and the edits; of a merge of the target branch, what it left of the files."""

    commit: Commit
    edits: list[Edit]


@dataclass(frozen=True)
class Reconstruction:
    """`relevant_files`: path -> complete content at the base, of every file the change touches and the base has.

    `opaque`: path -> reason, of files that are only named; the steps leave them out. `paths_at_base`: those of the
    change's paths, opaque ones too, that the base has.
    """

    relevant_files: dict[str, str]
    steps: list[Step]
    opaque: dict[str, str]
    paths_at_base: frozenset[str]


def reconstruct(change: Change, name_opaque: bool = False) -> Reconstruction:
    """Rebuild a change. Raises Rejected where it cannot be told as edits of text files.

    With `name_opaque` files that hold no text are named and left out, unless nothing else is left.
    """
    if any(commit.conflict for commit in change.commits):
        raise Rejected("merge_conflict")  # what a person decided there is an edit that no commit tells of
    opaque = opaque_paths(change) if name_opaque else {}
    if opaque and change.paths <= opaque.keys():
        raise Rejected("no_text_file")
    tree = files_at_base(change, frozenset(opaque))
    relevant = {path: file.text for path, file in tree.items()}
    steps = []
    for commit in change.commits:
        edits = _merge_edits(change, commit, opaque) if commit.merge else _commit_edits(change, commit, tree, opaque)
        try:
            for edit in edits:
                edit.apply(tree)
        except CannotApply:
            raise Rejected("does_not_replay") from None
        steps.append(Step(commit, edits))
    return Reconstruction(relevant, steps, opaque, _paths_at_base(change))


def _paths_at_base(change: Change) -> frozenset[str]:
    first: dict[str, bool] = {}
    for file in (file for commit in change.commits for file in commit.files):
        first.setdefault(file.old_path, file.old_blob is not None)
        first.setdefault(file.path, file.path == file.old_path and file.old_blob is not None)
    return frozenset(path for path, there in first.items() if there)


def _merge_edits(change: Change, commit: Commit, opaque: dict[str, str]) -> list[Edit]:
    return [_merged_file(change, file) for file in commit.files if file.path not in opaque]


def _merged_file(change: Change, file: FileChange) -> Edit:
    if file.status == "D":
        return Edit("gone", file.path)
    after = text_of(change, file.new_blob, file.new_mode)
    return Edit("read", file.path, text=after.text, mode=after.mode)


def _commit_edits(change: Change, commit: Commit, tree: FileTree, opaque: dict[str, str]) -> list[Edit]:
    # Renames first, so that a path that one file leaves and another one takes is free by then.
    changes = sorted(commit.files, key=lambda file: (file.status != "R", file.status != "D"))
    return [edit for file in changes if file.path not in opaque for edit in _file_edits(change, file, tree)]


def _file_edits(change: Change, file: FileChange, tree: FileTree) -> list[Edit]:
    if file.status == "D":
        return [Edit("delete", file.path)]
    after = text_of(change, file.new_blob, file.new_mode)
    if file.status == "A":
        return [Edit("create", file.path, text=after.text, mode=after.mode)]
    before = tree.get(file.old_path)
    if before is None:
        raise Rejected("does_not_replay")
    edits = []
    if file.status == "R":
        edits.append(Edit("rename", file.old_path, target=file.path))
    if after.text and not before.text:  # nothing to search for in an empty file
        return [*edits, Edit("create", file.path, text=after.text, mode=after.mode)]
    if before.mode != after.mode:
        edits.append(Edit("mode", file.path, mode=after.mode))
    if before.text != after.text:
        edits += block_edits(file.path, before.text, after.text)
    return edits
