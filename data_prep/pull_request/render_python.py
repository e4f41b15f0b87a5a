"""The python form: Markdown that localizes, reads, reasons and edits, in the order in which an agent would.

daVinci-Dev, appendix C. Sections: Repository Context, Pull Request, Relevant Files Found, Summary, Edits. The Issue
section of the paper is left out, since a git history links none.
"""

from pathlib import PurePosixPath

from data_prep.pull_request.edits import fence
from data_prep.pull_request.reconstruct import Reconstruction
from data_prep.pull_request.record import Change
from data_prep.sample import Sample

_LANGUAGE = {".py": "python", ".pyi": "python", ".md": "markdown", ".rst": "rst"}


def render_python(change: Change, reconstruction: Reconstruction) -> Sample:
    """One training document out of one change."""
    sections = [
        f"# Repository Context\n\nRepository: {change.repository}\nLanguage: Python\n",
        _pull_request(change),
        _relevant_files(reconstruction),
        f"# Summary\n\n{_summary(change)}\n",
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
    body = f"\n{change.body}\n" if change.body else ""
    return f"# Pull Request\n\nTitle: {change.title}\n{body}"


def _relevant_files(reconstruction: Reconstruction) -> str:
    files = []
    for path, text in sorted(reconstruction.relevant_files.items()):
        mark = fence(text)
        newline = "" if not text or text.endswith("\n") else "\n"
        files.append(f"## `{path}`\n\n{mark}{_LANGUAGE.get(PurePosixPath(path).suffix, '')}\n{text}{newline}{mark}\n")
    return "# Relevant Files Found\n\n" + "\n".join(files or ["None: every file of this change is new.\n"])


def _summary(change: Change) -> str:
    """What is said where no language model wrote a summary: the facts."""
    paths = sorted({file.path for commit in change.commits for file in commit.files})
    commits = "one commit" if len(change.commits) == 1 else f"{len(change.commits)} commits"
    return f"{change.title}. The change takes {commits} and touches {', '.join(f'`{path}`' for path in paths)}."


def _edits(reconstruction: Reconstruction) -> str:
    steps = [f"## {_heading_and_rest(step.message)}\n\n{step.edits}" for step in reconstruction.steps]
    return "# Edits\n\n" + "\n".join(steps)


def _heading_and_rest(message: str) -> str:
    subject, _, rest = message.partition("\n")
    return f"{subject}\n\n{rest.strip()}" if rest.strip() else subject
