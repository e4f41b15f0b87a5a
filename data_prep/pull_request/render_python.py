"""The python form: Markdown that localizes, reads, reasons and edits, in the order in which an agent would.

daVinci-Dev, appendix C. Sections: Repository Context, Issue (where one is linked), Pull Request, Relevant Files Found,
Summary, Edits. What people wrote is quoted, so that nothing in it can be taken for structure: `read_python` gets files
and edits back from the finished text.
"""

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from data_prep.pull_request.edits import (
    CannotApply,
    Edit,
    TextFile,
    fence,
    parse_edits,
    quote,
    read_until,
    render_edits,
    split_lines,
    with_newline_marker,
)
from data_prep.pull_request.proof import ReadBack
from data_prep.pull_request.reconstruct import Reconstruction, Step
from data_prep.pull_request.record import Change
from data_prep.pull_request.speech import Speech

_FILES, _SUMMARY, _EDITS = "# Relevant Files Found\n", "# Summary\n", "# Edits\n"
_LANGUAGE = {".py": "python", ".pyi": "python", ".md": "markdown", ".rst": "rst"}


def render_python(change: Change, reconstruction: Reconstruction, speech: Speech) -> str:
    """One training document out of one change."""
    sections = [
        *context_sections(change, speech),
        relevant_files(reconstruction),
        f"{_SUMMARY}\n{summary_of(change, speech)}",
        _edits(reconstruction, change, speech),
    ]
    return "\n".join(sections)


def context_sections(change: Change, speech: Speech) -> list[str]:
    """Repository, issues and pull request: what there is before anything has been looked at."""
    return [_repository(change, speech), *_issues(change, speech), _pull_request(change, speech)]


def _repository(change: Change, speech: Speech) -> str:
    lines = [f"Repository: {change.repository}", f"Language: {(change.facts and change.facts.language) or 'Python'}"]
    if change.facts and change.facts.topics:
        lines.append(f"Topics: {', '.join(change.facts.topics)}")
    described = change.facts.description if change.facts else ""
    description = f"\n{quote(speech.clean(described))}" if described.strip() else ""
    return "# Repository Context\n\n" + "\n".join(lines) + "\n" + description


def _issues(change: Change, speech: Speech) -> Iterator[str]:
    for issue in change.conversation.issues if change.conversation else ():
        body = f"\n{quote(speech.clean(issue.body))}" if issue.body.strip() else ""
        yield f"# Issue\n\nTitle: {one_line(speech.clean(issue.title))}\n{body}"


def _pull_request(change: Change, speech: Speech) -> str:
    body = f"\n{quote(speech.clean(change.body))}" if change.body.strip() else ""
    return f"# Pull Request\n\nTitle: {one_line(speech.clean(change.title))}\n{body}"


def one_line(text: str) -> str:
    """A title as one line, whatever it holds."""
    return " ".join(text.split())


def relevant_files(reconstruction: Reconstruction) -> str:
    """Path and complete content at the base of every file that the change touches."""
    files = []
    for path, text in sorted(reconstruction.relevant_files.items()):
        mark = fence(text)
        language = _LANGUAGE.get(PurePosixPath(path).suffix, "")
        files.append(f"## `{path}`\n\n{mark}{language}\n{with_newline_marker(text)}{mark}\n")
    return _FILES + "\n" + "\n".join(files or ["None: every file of this change is new.\n"])


def summary_of(change: Change, speech: Speech) -> str:
    """What a language model wrote, else the facts: title, number of commits, files."""
    if change.enhancement and change.enhancement.summary:
        return quote(speech.clean(change.enhancement.summary))
    paths = sorted({file.path for commit in change.own_commits for file in commit.files})
    commits = "one commit" if len(change.commits) == 1 else f"{len(change.commits)} commits"
    touched = ", ".join(f"`{path}`" for path in paths)
    return (
        f"{one_line(speech.clean(change.title)).rstrip('.!?…: ')}. The change takes {commits} and touches {touched}.\n"
    )


def message_of(change: Change, step: Step, speech: Speech) -> str:
    """What is said of a commit: the fuller message where a model wrote one."""
    refined = change.enhancement.messages.get(step.commit.sha) if change.enhancement else None
    return speech.clean(refined or step.commit.message)


def _edits(reconstruction: Reconstruction, change: Change, speech: Speech) -> str:
    total = len(reconstruction.steps)
    return _EDITS + "\n" + "\n".join(
        f"## Commit {number} of {total}{': the target branch is merged' if step.commit.merge else ''}\n\n"
        f"{quote(message_of(change, step, speech))}\n{render_edits(step.edits)}"
        for number, step in enumerate(reconstruction.steps, 1)
    )  # fmt: skip


def read_python(text: str) -> ReadBack:
    """Relevant files and edits of a finished sample. Raises CannotApply where it is none."""
    lines = iter(split_lines(text))
    skip_to(_FILES, lines)
    files = read_files(lines, _SUMMARY)
    skip_to(_EDITS, lines)
    return read_back(files, parse_edits(lines))


def read_back(files: dict[str, str], edits: list[Edit]) -> ReadBack:
    """Files and edits, with what the edits only show told apart."""
    shown = [
        (edit.path, TextFile(edit.text, edit.mode) if edit.kind == "read" else None)
        for edit in edits
        if edit.kind in ("read", "gone")
    ]
    return ReadBack(files, shown, edits)


def skip_to(heading: str, lines: Iterable[str]) -> None:
    """Read lines up to a heading."""
    for line in lines:
        if line == heading:
            break


def read_files(lines: Iterator[str], end: str) -> dict[str, str]:
    """The relevant files of a sample, up to the heading that follows them. Raises CannotApply."""
    files = {}
    for line in lines:
        if line == end:
            break
        if line.startswith("## `"):
            next(lines, None)  # blank
            opening = next(lines, "")
            mark = opening[: len(opening) - len(opening.lstrip("`"))]
            if len(mark) < 3:
                raise CannotApply("a relevant file is not in a fence")
            files[line.removeprefix("## `").removesuffix("`\n")] = read_until(lines, mark + "\n")
    return files
