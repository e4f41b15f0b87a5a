"""The python form: Markdown that localizes, reads, reasons and edits, in the order in which an agent would.

daVinci-Dev, appendix C. Sections: Repository Context, Pull Request, Relevant Files Found, Summary, Edits. The Issue
section of the paper is left out, since a git history links none. What people wrote is quoted, so that nothing in it can
be taken for structure: `read_python` gets files and edits back from the finished text.
"""

from pathlib import PurePosixPath

from data_prep.pull_request.edits import (
    CannotApply,
    Edit,
    fence,
    parse_edits,
    quote,
    read_until,
    render_edits,
    split_lines,
    with_newline_marker,
)
from data_prep.pull_request.reconstruct import Reconstruction
from data_prep.pull_request.record import Change
from data_prep.sample import Sample

_FILES, _SUMMARY, _EDITS = "# Relevant Files Found\n", "# Summary\n", "# Edits\n"
_LANGUAGE = {".py": "python", ".pyi": "python", ".md": "markdown", ".rst": "rst"}


def render_python(change: Change, reconstruction: Reconstruction) -> Sample:
    """One training document out of one change."""
    sections = [
        f"# Repository Context\n\nRepository: {change.repository}\nLanguage: Python\n",
        _pull_request(change),
        _relevant_files(reconstruction),
        f"{_SUMMARY}\n{_summary(change)}\n",
        _edits(reconstruction),
    ]
    meta = {
        "repository": change.repository,
        "kind": change.kind,
        "number": change.number,
        "base": change.base,
        "head": change.head,
        "commits": len(change.commits),
    }
    return Sample(id=change.id, text="\n".join(sections), source=f"git:{change.kind}", meta=meta)


def _pull_request(change: Change) -> str:
    body = f"\n{quote(change.body)}" if change.body else ""
    return f"# Pull Request\n\nTitle: {change.title}\n{body}"


def _relevant_files(reconstruction: Reconstruction) -> str:
    files = []
    for path, text in sorted(reconstruction.relevant_files.items()):
        mark = fence(text)
        language = _LANGUAGE.get(PurePosixPath(path).suffix, "")
        files.append(f"## `{path}`\n\n{mark}{language}\n{with_newline_marker(text)}{mark}\n")
    return _FILES + "\n" + "\n".join(files or ["None: every file of this change is new.\n"])


def _summary(change: Change) -> str:
    """What is said where no language model wrote a summary: the facts."""
    paths = sorted({file.path for commit in change.commits for file in commit.files})
    commits = "one commit" if len(change.commits) == 1 else f"{len(change.commits)} commits"
    return f"{change.title}. The change takes {commits} and touches {', '.join(f'`{path}`' for path in paths)}."


def _edits(reconstruction: Reconstruction) -> str:
    total = len(reconstruction.steps)
    steps = [
        f"## Commit {number} of {total}\n\n{quote(step.message)}\n{render_edits(step.edits)}"
        for number, step in enumerate(reconstruction.steps, 1)
    ]
    return _EDITS + "\n" + "\n".join(steps)


def read_python(text: str) -> tuple[dict[str, str], list[Edit]]:
    """Relevant files (path -> content) and edits of a finished sample. Raises CannotApply where it is none."""
    lines = iter(split_lines(text))
    for line in lines:
        if line == _FILES:
            break
    files = {}
    for line in lines:
        if line == _SUMMARY:
            break
        if line.startswith("## `"):
            next(lines, None)  # blank
            opening = next(lines, "")
            mark = opening[: len(opening) - len(opening.lstrip("`"))]
            if len(mark) < 3:
                raise CannotApply("a relevant file is not in a fence")
            files[line.removeprefix("## `").removesuffix("`\n")] = read_until(lines, mark + "\n")
    for line in lines:
        if line == _EDITS:
            break
    return files, parse_edits(lines)
