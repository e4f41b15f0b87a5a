"""The factorised form: localization and editing as two samples that know nothing of each other (Kimi-Dev's way).

It is the baseline that daVinci-Dev compares with: the same records, the same tokens, without the context that ties
looking for the files to changing them.
"""

from data_prep.changes.record import Change
from data_prep.reconstruct.contents import Rejected
from data_prep.reconstruct.edits import fence, parse_edits, render_edits, split_lines
from data_prep.reconstruct.reconstruct import Reconstruction
from data_prep.reconstruct.replay_check import ParsedSample
from data_prep.samples.anonymize import Anonymizer
from data_prep.samples.python_format import context_sections, parse_sections, read_files, relevant_files, skip_to

_STRUCTURE = "# Repository Structure\n"
_FILES, _TO_CHANGE, _EDITS = "# Relevant Files Found\n", "# Files to Change\n", "# Edits\n"


def render_localization(change: Change, reconstruction: Reconstruction, anonymizer: Anonymizer) -> str:
    """The context of the change, the repository's files, and the paths of those to change; new files are marked as new.

    Raises Rejected (no_structure) for a record without a structure: without it there is nothing to find them in.
    """
    if change.structure is None:
        raise Rejected("no_structure")
    mark = fence(change.structure)
    structure = f"{_STRUCTURE}\n{mark}\n{change.structure}{mark}\n"
    paths = sorted(
        {file.path for commit in change.own_commits for file in commit.files} | {*reconstruction.relevant_files}
    )
    known = reconstruction.relevant_files
    listed = "".join(f"- `{path}`{'' if path in known else ' (new)'}\n" for path in paths)
    return "\n".join([*context_sections(change, anonymizer), structure, f"{_TO_CHANGE}\n{listed}"])


def render_editing(change: Change, reconstruction: Reconstruction, anonymizer: Anonymizer) -> str:
    """The context of the change, the files, and the edits, without a word in between."""
    edits = "\n".join(render_edits(step.edits) for step in reconstruction.steps if step.edits)
    return "\n".join([*context_sections(change, anonymizer), relevant_files(reconstruction), f"{_EDITS}\n{edits}"])


def read_editing(text: str) -> ParsedSample:
    """Relevant files and edits of a finished editing sample. Raises CannotApply where it is none."""
    lines = iter(split_lines(text))
    skip_to(_FILES, lines)
    return parse_sections(read_files(lines, _EDITS), parse_edits(lines))
