"""Which changes are kept. Each filter gives a reason; the first one that applies is counted."""

import re
from pathlib import PurePosixPath

from data_prep.pull_request.record import Change

PYTHON_SUFFIXES = frozenset({".py", ".pyi"})
DOCUMENTATION_SUFFIXES = frozenset({".md", ".rst", ".txt"})
MAX_PYTHON_FILES = 5  # daVinci-Dev, section 3.1: one to five Python files

# Accounts that announce themselves neither by "[bot]" nor by a GitHub account type.
_BOT_NAMES = frozenset(
    {"dependabot", "dependabot-preview", "greenkeeper", "pre-commit-ci", "pyup-bot", "pyup.io bot", "renovate",
     "renovate-bot", "requires.io", "snyk-bot", "web-flow"}
)  # fmt: skip
_BOT = re.compile(r"\[bot\]|\bbot$", re.IGNORECASE)

# The repositories of SWE-bench Verified: none of their changes may be trained on. By name alone, whoever the owner is:
# a fork or a clone of a clone carries the same changes.
SWE_BENCH_VERIFIED = frozenset(
    {"astropy", "django", "matplotlib", "seaborn", "flask", "requests", "xarray", "pylint", "pytest", "scikit-learn",
     "sphinx", "sympy"}
)  # fmt: skip


def is_bot(author: str) -> bool:
    """True for a name that belongs to an automaton."""
    return author.lower() in _BOT_NAMES or _BOT.search(author) is not None


def reject_python(change: Change) -> str | None:
    """Why a change is not for the python corpus, None when it is."""
    if change.repository.rpartition("/")[2].lower() in SWE_BENCH_VERIFIED:
        return "swe_bench_verified"
    if any(is_bot(commit.author) for commit in change.commits):
        return "bot"
    paths = {path for commit in change.commits for file in commit.files for path in (file.path, file.old_path)}
    if not paths:
        return "no_files"
    suffixes = [PurePosixPath(path).suffix.lower() for path in paths]
    num_python = sum(suffix in PYTHON_SUFFIXES for suffix in suffixes)
    if num_python == 0:
        return "no_python_file"
    if num_python > MAX_PYTHON_FILES:
        return "too_many_python_files"
    if any(suffix not in PYTHON_SUFFIXES | DOCUMENTATION_SUFFIXES for suffix in suffixes):
        return "other_file_types"
    if any("`" in path or "\ufffd" in path or not path.isprintable() for path in paths):
        return "path_cannot_be_written"
    return None
