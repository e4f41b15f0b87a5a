"""What people wrote about a change, each thing told in one place.

A squash says again, in its body, what its commits said; a commit that is a whole pull request says again what the pull
request says. What a bot's commit says is left out.
"""

import re

from data_prep.changes.bots import is_bot
from data_prep.changes.record import Change, Commit

_COMMIT_IN_SQUASH = re.compile(r"^\* ", re.MULTILINE)  # the host lists the commits so, with their whole messages,
_RULE = re.compile(r"^-{3,}$", re.MULTILINE)  # and parts them by a line from who else took part


def body_of(change: Change) -> str:
    """The description of a change without what its own commits tell."""
    listing, *rest = _RULE.split(change.body, maxsplit=1)
    first, *listed = _COMMIT_IN_SQUASH.split(listing)
    told = [_lines(commit.message) for commit in change.own_commits if not _tells_all(commit, change)]
    kept = [f"* {each}" for each in listed if not any(_lines(each) <= lines for lines in told)]
    if len(kept) == len(listed):
        return change.body
    return "".join([first, *kept, *rest]).strip()


def words_of(commit: Commit, change: Change) -> str:
    """The message of a commit without what the change's description tells, nothing for a bot's."""
    if is_bot(commit.author):
        return ""
    subject, _, body = commit.message.partition("\n")
    lines = _lines(body)
    return subject if lines and lines <= _lines(body_of(change)) else commit.message


def _tells_all(commit: Commit, change: Change) -> bool:
    """Whether a commit's message is the change's description itself: then the description tells it."""
    lines = _lines(change.body)
    return bool(lines) and lines <= _lines(commit.message)


def _lines(text: str) -> set[str]:
    """The lines that say something, whatever the white space in them."""
    return {" ".join(line.split()) for line in text.splitlines() if line.strip()}
