"""Which changes are kept. Each filter gives a reason; the first one that applies is counted."""

import re
from pathlib import PurePosixPath

from data_prep.changes.bots import is_bot
from data_prep.changes.record import Change
from data_prep.changes.swe_bench import is_named_like_swe_bench, swe_bench_verified

PYTHON_SUFFIXES = frozenset({".py", ".pyi"})
DOCUMENTATION_SUFFIXES = frozenset({".md", ".rst", ".txt"})
_DOCUMENTATION_NAMES = frozenset(
    {"authors", "changelog", "changes", "contributing", "contributors", "copying", "copyright", "credits", "history",
     "install", "licence", "license", "maintainers", "news", "notice", "readme", "thanks", "todo"}
)  # fmt: skip
_NOT_DOCUMENTATION = re.compile(  # what tools read
    r"(?:^|/)(?:[^/]*(?:requirements|constraints)[^/]*|(?:requirements|constraints)/[^/]*|CMakeLists)\.txt$",
    re.IGNORECASE,
)
MAX_PYTHON_FILES = 5  # daVinci-Dev, section 3.1: one to five Python files
MIN_STARS = 5  # and a repository with at least five stars, not archived, in Python


def reject_general(change: Change) -> str | None:
    """Why a change is not for any corpus, None when it is for the general one."""
    if _is_of_swe_bench(change):
        return "swe_bench_verified"
    conversation = change.conversation
    if conversation is not None and not conversation.merged:
        return "not_merged"
    if _is_made_by_a_bot(change):
        return "bot"
    if not change.paths:
        return "no_files"
    if not change.net_paths:
        return "no_net_change"
    if any("\ufffd" in path or not path.isprintable() for path in change.paths):
        return "path_cannot_be_written"
    return None


def _is_made_by_a_bot(change: Change) -> bool:
    """Whether a bot opened it: as the host says; a history says no more than who made the first commit."""
    if change.conversation is not None:
        return change.conversation.bot or is_bot(change.conversation.author)
    return bool(change.own_commits) and is_bot(change.own_commits[0].author)


def _is_of_swe_bench(change: Change) -> bool:
    """By its history, by name, as a fork, by base commit."""
    commits = swe_bench_verified()[1]
    known_as = [change.repository, change.facts.source if change.facts and change.facts.source else ""]
    if change.of_swe_bench or any(map(is_named_like_swe_bench, known_as)):
        return True
    return change.base in commits or bool(change.conversation and change.conversation.recorded_base in commits)


def reject_python(change: Change) -> str | None:
    """Why a change is not for the python corpus, None when it is."""
    return reject_general(change) or _reject_repository(change) or _reject_paths(change)


def _reject_repository(change: Change) -> str | None:
    facts = change.facts
    if facts is None:  # a history knows no stars
        return None
    if facts.language != "Python":
        return "repository_language"
    if facts.stars is not None and facts.stars < MIN_STARS:
        return "too_few_stars"
    return "repository_archived" if facts.archived else None


def _reject_paths(change: Change) -> str | None:
    num_python = sum(PurePosixPath(path).suffix.lower() in PYTHON_SUFFIXES for path in change.net_paths)
    if num_python == 0:
        return "no_python_file"
    if num_python > MAX_PYTHON_FILES:
        return "too_many_python_files"
    if not all(is_python_or_documentation(path) for path in change.paths):
        return "other_file_types"
    return "path_cannot_be_written" if any("`" in path for path in change.paths) else None


def is_python_or_documentation(path: str) -> bool:
    """Whether a file is Python source, or words for people: not what tools read, such as requirements.txt."""
    name = PurePosixPath(path)
    suffix = name.suffix.lower()
    if suffix in PYTHON_SUFFIXES:
        return True
    if suffix in DOCUMENTATION_SUFFIXES:
        return _NOT_DOCUMENTATION.search(path) is None
    return not suffix and name.name.lower() in _DOCUMENTATION_NAMES
