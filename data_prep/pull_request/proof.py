"""The replay proof: the finished text of a sample, read back, must turn the base into the head byte for byte."""

from data_prep.pull_request.edits import CannotApply, Edit, TextFile, apply_edit
from data_prep.pull_request.reconstruct import Rejected, files_at_base, files_at_head
from data_prep.pull_request.record import Change


def prove(change: Change, files: dict[str, str], edits: list[Edit]) -> None:
    """Raise Rejected unless `files` are the base and `edits` lead from it to the head; both as read from the text.

    Modes of files at the base are the one thing that a text does not show; they come from the record.
    """
    base = files_at_base(change)
    if files != {path: file.text for path, file in base.items()}:
        raise Rejected("does_not_replay")
    tree = {path: TextFile(text, base[path].mode) for path, text in files.items()}
    try:
        for edit in edits:
            apply_edit(tree, edit)
    except CannotApply:
        raise Rejected("does_not_replay") from None
    if tree != files_at_head(change):
        raise Rejected("does_not_replay")
