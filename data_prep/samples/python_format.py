"""The python form: Markdown that localizes, reads, reasons and edits, in the order in which an agent would.

daVinci-Dev, appendix C. Sections: Repository Context, Issue (where one is linked), Pull Request, Relevant Files Found,
Summary, Edits. What people wrote is quoted, so that nothing in it can be taken for structure: `read_python` gets files
and edits back from the finished text.
"""

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from data_prep.changes.record import Change
from data_prep.reconstruct.edits import (
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
from data_prep.reconstruct.reconstruct import Reconstruction, Step
from data_prep.reconstruct.replay_check import ParsedSample
from data_prep.samples.anonymize import Anonymizer
from data_prep.samples.told_once import body_of, words_of

_FILES, _SUMMARY, _EDITS = "# Relevant Files Found\n", "# Summary\n", "# Edits\n"
_LANGUAGE = {".py": "python", ".pyi": "python", ".md": "markdown", ".rst": "rst"}


def render_python(change: Change, reconstruction: Reconstruction, anonymizer: Anonymizer) -> str:
    """One training document out of one change."""
    sections = [
        *context_sections(change, anonymizer),
        relevant_files(reconstruction),
        f"{_SUMMARY}\n{summary_of(change, anonymizer)}",
        _edits(reconstruction, change, anonymizer),
    ]
    return "\n".join(sections)


def context_sections(change: Change, anonymizer: Anonymizer) -> list[str]:
    """Repository, issues and pull request: what there is before anything has been looked at."""
    return [_repository(change, anonymizer), *_issues(change, anonymizer), _pull_request(change, anonymizer)]


def _repository(change: Change, anonymizer: Anonymizer) -> str:
    lines = [f"Repository: {change.repository}", f"Language: {(change.facts and change.facts.language) or 'Python'}"]
    if change.facts and change.facts.topics:
        lines.append(f"Topics: {', '.join(change.facts.topics)}")
    described = change.facts.description if change.facts else ""
    description = f"\n{quote(anonymizer.scrub(described))}" if described.strip() else ""
    return "# Repository Context\n\n" + "\n".join(lines) + "\n" + description


def _issues(change: Change, anonymizer: Anonymizer) -> Iterator[str]:
    for issue in change.conversation.issues if change.conversation else ():
        body = f"\n{quote(anonymizer.scrub(issue.body))}" if issue.body.strip() else ""
        yield f"# Issue\n\nTitle: {one_line(anonymizer.scrub(issue.title))}\n{body}"


def _pull_request(change: Change, anonymizer: Anonymizer) -> str:
    told = body_of(change)
    body = f"\n{quote(anonymizer.scrub(told))}" if told.strip() else ""
    return f"# Pull Request\n\nTitle: {one_line(anonymizer.scrub(change.title))}\n{body}"


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


def summary_of(change: Change, anonymizer: Anonymizer) -> str:
    """What a language model wrote, else the facts: title, number of commits, files."""
    if change.enhancement and change.enhancement.summary:
        return quote(anonymizer.scrub(change.enhancement.summary))
    paths = sorted({file.path for commit in change.own_commits for file in commit.files})
    commits = "one commit" if len(change.commits) == 1 else f"{len(change.commits)} commits"
    touched = ", ".join(f"`{path}`" for path in paths)
    title = one_line(anonymizer.scrub(change.title)).rstrip(".!?…: ")
    return f"{title}. The change takes {commits} and touches {touched}.\n"


def message_of(change: Change, step: Step, anonymizer: Anonymizer) -> str:
    """The message of a step's commit: the fuller one, where a model wrote one."""
    refined = change.enhancement.messages.get(step.commit.sha) if change.enhancement else None
    return anonymizer.scrub(refined or words_of(step.commit, change))


def _edits(reconstruction: Reconstruction, change: Change, anonymizer: Anonymizer) -> str:
    total = len(reconstruction.steps)
    return _EDITS + "\n" + "\n".join(
        f"## Commit {number} of {total}{': the target branch is merged' if step.commit.merge else ''}\n\n"
        f"{quote(message_of(change, step, anonymizer))}\n{render_edits(step.edits)}"
        for number, step in enumerate(reconstruction.steps, 1)
    )  # fmt: skip


def read_python(text: str) -> ParsedSample:
    """Relevant files and edits of a finished sample. Raises CannotApply where it is none."""
    lines = iter(split_lines(text))
    skip_to(_FILES, lines)
    files = read_files(lines, _SUMMARY)
    skip_to(_EDITS, lines)
    return parse_sections(files, parse_edits(lines))


def parse_sections(files: dict[str, str], edits: list[Edit]) -> ParsedSample:
    """Files and edits, with what the edits only show told apart."""
    shown = [
        (edit.path, TextFile(edit.text, edit.mode) if edit.kind == "read" else None)
        for edit in edits
        if edit.kind in ("read", "gone")
    ]
    return ParsedSample(files, shown, edits)


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
