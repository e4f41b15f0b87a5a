"""What people said, made fit to train on: pseudonyms for people, no e-mail addresses, no credentials.

Only speech is altered. Contents of files must stay as they are, so that the replay proof holds; a file with a
credential keeps its change out altogether.
"""

import re
from collections.abc import Iterable

from data_prep.pull_request.record import Change

_EMAIL = re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b")
# What services hand out, by the forms that they document; each is long enough not to be met by chance.
_CREDENTIAL = re.compile(
    r"\b(?:gh[opsur]_[A-Za-z0-9]{36,}|github_pat_\w{60,}|glpat-[\w-]{20,}|(?:AKIA|ASIA)[0-9A-Z]{16}"
    r"|xox[abeoprs]-[\w-]{20,}|AIza[\w-]{35}|sk-(?:proj-|ant-)?[\w-]{32,}|sk_live_\w{24,}|npm_[A-Za-z0-9]{36}"
    r"|pypi-AgEI[\w-]{50,}|hf_[A-Za-z]{34}|SG\.[\w-]{22}\.[\w-]{43})(?![\w-])"
    r"|-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----\s+[A-Za-z0-9+/=\s]{64,}"
)
_TRAILER = re.compile(r"^(?P<key>[A-Z][a-z]+(?:-[a-z]+)*-by:\s*)(?P<name>[^<\n]+?)\s*(?:<[^>\n]*>)?\s*$", re.MULTILINE)
_WORD = r"(?<![\w@./-]){}(?![\w@/-]|\.\w)"


def holds_credential(text: str) -> bool:
    """Whether a text holds a key or a token of one of the well-known kinds."""
    return _CREDENTIAL.search(text) is not None


class Speech:
    """Cleans what was said about one change. Pseudonyms are username_0, username_1, ... in the order of appearance.

    Known people are those the change names: author, reviewers, commenters, committers, and whom trailers
    ("Co-authored-by: ...") name. They are replaced where they are mentioned (@login), where a trailer names them, and,
    with a name of two words or more, wherever they stand. With `pseudonyms` off names stay.
    """

    def __init__(self, change: Change, pseudonyms: bool = True) -> None:
        self._pseudonyms = pseudonyms
        self._names: dict[str, str] = {}
        if pseudonyms:
            for person in _people(change):
                self._names.setdefault(person.casefold(), f"username_{len(self._names)}")
        people = sorted(self._names, key=len, reverse=True)
        full_names = [re.escape(name) for name in people if " " in name]
        logins = [re.escape(name) for name in people if " " not in name]
        self._full = re.compile(_WORD.format(f"(?:{'|'.join(full_names)})"), re.IGNORECASE) if full_names else None
        self._login = re.compile(rf"(?<![\w@/])@(?:{'|'.join(logins)})(?![\w-])", re.IGNORECASE) if logins else None

    def name(self, person: str) -> str:
        """How a person is called here."""
        return self._names.get(person.casefold(), person)

    def clean(self, text: str) -> str:
        """A text without names, addresses and credentials; line ends are line feeds."""
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        if self._pseudonyms:
            text = _TRAILER.sub(lambda match: match["key"] + self.name(match["name"]), text)
            if self._login:
                text = self._login.sub(lambda match: "@" + self.name(match[0][1:]), text)
            if self._full:
                text = self._full.sub(lambda match: self.name(match[0]), text)
        return _CREDENTIAL.sub("<credential>", _EMAIL.sub("<email>", text))


def _people(change: Change) -> Iterable[str]:
    said = [change.body, *(commit.message for commit in change.commits)]
    if talk := change.conversation:
        yield talk.author
        yield from (event.author for event in talk.events)
        yield from (issue.author for issue in talk.issues)
        said += [event.text for event in talk.events]
    yield from (commit.author for commit in change.commits)
    for text in said:
        yield from (match["name"] for match in _TRAILER.finditer(text.replace("\r\n", "\n")))
