"""Names that belong to automata."""

import re

# Accounts that announce themselves neither by "[bot]" nor by a GitHub account type.
_BOT_NAMES = frozenset(
    {"allcontributors", "bors", "codecov-commenter", "codecov-io", "dependabot", "dependabot-preview", "github actions",
     "github-actions", "googlebot", "greenkeeper", "homu", "hosted weblate", "imgbot", "k8s-ci-robot", "mergify",
     "pre-commit-ci", "pyup-bot", "pyup.io bot", "renovate", "renovate-bot", "requires.io", "scala-steward", "snyk-bot",
     "stale", "weblate", "web-flow"}
)  # fmt: skip
_BOT = re.compile(r"\[bot\]|\bbot$", re.IGNORECASE)


def is_bot(author: str) -> bool:
    """True for a name that belongs to an automaton."""
    return author.lower() in _BOT_NAMES or _BOT.search(author) is not None
