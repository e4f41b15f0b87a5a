"""Which changes are kept. Each filter gives a reason; the first one that applies is counted."""

import functools
from importlib.resources import files
from pathlib import PurePosixPath

import orjson

from data_prep.changes.bots import is_bot
from data_prep.changes.record import Change

PYTHON_SUFFIXES = frozenset({".py", ".pyi"})
DOCUMENTATION_SUFFIXES = frozenset({".md", ".rst", ".txt"})
MAX_PYTHON_FILES = 5  # daVinci-Dev, section 3.1: one to five Python files
MIN_STARS = 5  # and a repository with at least five stars, not archived, in Python


@functools.cache
def swe_bench_verified() -> tuple[frozenset[str], frozenset[str]]:
    """Bare names of its repositories, and the base commits of its instances."""
    instances = orjson.loads(files("data_prep.samples").joinpath("swe_bench_verified.json").read_bytes())
    names = frozenset(repository.rpartition("/")[2].lower() for repository in instances)
    return names, frozenset(commit for pulls in instances.values() for commit in pulls.values())


def reject_general(change: Change) -> str | None:
    """Why a change is not for any corpus, None when it is for the general one."""
    if _is_of_swe_bench(change):
        return "swe_bench_verified"
    conversation = change.conversation
    if conversation is not None and not conversation.merged:
        return "not_merged"
    if (conversation is not None and (conversation.bot or is_bot(conversation.author))) or any(
        is_bot(c.author) for c in change.own_commits
    ):
        return "bot"
    if not change.paths:
        return "no_files"
    if any("\ufffd" in path or not path.isprintable() for path in change.paths):
        return "path_cannot_be_written"
    return None


def _is_of_swe_bench(change: Change) -> bool:
    """By name, whoever the owner is, since a clone of a clone carries the same changes; as a fork; by base commit."""
    names, commits = swe_bench_verified()
    known_as = [change.repository, change.facts.source if change.facts and change.facts.source else ""]
    if any(name.rpartition("/")[2].lower() in names for name in known_as):
        return True
    return change.base in commits or bool(change.conversation and change.conversation.recorded_base in commits)


def reject_python(change: Change) -> str | None:
    """Why a change is not for the python corpus, None when it is."""
    return reject_general(change) or _reject_repository(change) or _reject_paths(change.paths)


def _reject_repository(change: Change) -> str | None:
    facts = change.facts
    if facts is None:  # a history knows no stars
        return None
    if facts.language != "Python":
        return "repository_language"
    if facts.stars < MIN_STARS:
        return "too_few_stars"
    return "repository_archived" if facts.archived else None


def _reject_paths(paths: set[str]) -> str | None:
    suffixes = [PurePosixPath(path).suffix.lower() for path in paths]
    num_python = sum(suffix in PYTHON_SUFFIXES for suffix in suffixes)
    if num_python == 0:
        return "no_python_file"
    if num_python > MAX_PYTHON_FILES:
        return "too_many_python_files"
    if any(suffix not in PYTHON_SUFFIXES | DOCUMENTATION_SUFFIXES for suffix in suffixes):
        return "other_file_types"
    return "path_cannot_be_written" if any("`" in path for path in paths) else None
