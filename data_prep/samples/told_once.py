"""What people wrote about a change, each thing told in one place.

A squash says again, in its body, what its commits said; a commit that is a whole pull request says again what the pull
request says. What a bot's commit says is left out.
"""

import re

from data_prep.changes.bots import is_bot
from data_prep.changes.record import Change, Commit

_COMMIT_IN_SQUASH = re.compile(r"^\* ", re.MULTILINE)  # the host lists the commits so, with their whole messages
_RULE = re.compile(r"^-{3,}$", re.MULTILINE)  # and parts them, or what follows, with a line


def body_of(change: Change) -> str:
    """The description of a change without what its own commits tell."""
    lines, *rest = _RULE.split(change.body, maxsplit=1)
    first, *listed = _COMMIT_IN_SQUASH.split(lines)
    if not listed:
        return change.body
    told = [_words(commit.message) for commit in change.own_commits if not _is_squash(commit, change)]
    kept = [f"* {each}" for each in listed if not any(_words(each) in message for message in told)]
    if len(kept) == len(listed):
        return change.body
    return "".join([first, *kept, *rest]).strip()


def words_of(commit: Commit, change: Change) -> str:
    """The message of a commit without what the change's description tells, nothing for a bot's."""
    if is_bot(commit.author):
        return ""
    subject, _, body = commit.message.partition("\n")
    return subject if body.strip() and _words(body) in _words(change.body) else commit.message


def _is_squash(commit: Commit, change: Change) -> bool:
    return bool(change.body) and _words(change.body) in _words(commit.message)


def _words(text: str) -> str:
    return " ".join(text.split())
