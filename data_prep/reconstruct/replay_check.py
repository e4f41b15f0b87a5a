"""The replay proof: the finished text of a sample, read back, must turn the base into the head byte for byte."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from data_prep.changes.record import Change
from data_prep.reconstruct.contents import Rejected, files_at_base, files_at_head, text_of
from data_prep.reconstruct.edits import CannotApply, FileTree, TextFile


class Applicable(Protocol):
    """One step of a sample, as read from its text."""

    def apply(self, tree: FileTree) -> None:
        """Change the tree in place. Raises CannotApply."""


@dataclass(frozen=True)
class ParsedSample:
    """What a finished text says: files at the base, what it shows of files after merges, and all steps in order."""

    files: dict[str, str]
    shown: list[tuple[str, TextFile | None]]
    steps: Iterable[Applicable]


def verify_replay(change: Change, read: ParsedSample, leave_out: frozenset[str] = frozenset()) -> None:
    """Raise Rejected unless what was read leads from the base to the head; `leave_out` are paths that are only named.

    Modes of files at the base are the one thing that a text does not show; they come from the record.
    """
    base = files_at_base(change, leave_out)
    if read.files != {path: file.text for path, file in base.items()} or read.shown != _after_merges(change, leave_out):
        raise Rejected("does_not_replay")
    tree = {path: TextFile(text, base[path].mode) for path, text in read.files.items()}
    try:
        for step in read.steps:
            step.apply(tree)
    except CannotApply:
        raise Rejected("does_not_replay") from None
    if tree != files_at_head(change, leave_out):
        raise Rejected("does_not_replay")


def _after_merges(change: Change, leave_out: frozenset[str]) -> list[tuple[str, TextFile | None]]:
    """What merges of the target branch left of the change's files, None where they took one away."""
    return [
        (file.path, None if file.status == "D" else text_of(change, file.new_blob, file.new_mode))
        for commit in change.commits
        if commit.merge
        for file in commit.files
        if file.path not in leave_out
    ]
