"""What people said, made fit to train on: pseudonyms for people, no e-mail addresses, no credentials.

Only speech is altered. Contents of files must stay as they are, so that the replay proof holds; a file with a
credential keeps its change out altogether.
"""

import re
from collections.abc import Callable, Iterable, Iterator

from data_prep.changes.record import Change

# Not the user of an address of a repository, nor what is named after a version or a size (react@18.2.0, icon@2x.png).
_EMAIL = re.compile(
    r"(?<![\w.+@/-])(?!git@)[\w.+-]{1,64}@(?!\dx\.)(?:[A-Za-z\d-]{1,63}\.){1,5}[A-Za-z]{2,24}\b(?!\.?\d)"
)
_LOGIN_IN_ADDRESS = re.compile(r"(?<=://)[^\s/:@]{1,64}:[^\s/@]{1,128}(?=@)")
# What services hand out, by the forms that they document; each is long enough not to be met by chance.
_CREDENTIAL = re.compile(
    r"\b(?:gh[opsur]_[A-Za-z0-9]{36,}|github_pat_\w{60,}|glpat-[\w-]{20,}|(?:AKIA|ASIA)[0-9A-Z]{16}"
    r"|xox[abeoprs]-[\w-]{20,}|AIza[\w-]{35}|sk-(?:proj-|ant-)?[\w-]{32,}|sk_live_\w{24,}|npm_[A-Za-z0-9]{36}"
    r"|pypi-AgEI[\w-]{50,}|hf_[A-Za-z]{34}|SG\.[\w-]{22}\.[\w-]{43})(?![\w-])"
    r"|-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----\s+[A-Za-z0-9+/=\s]{64,}"
)
TRAILER = re.compile(
    r"^(?P<key>(?:co-authored|co-developed|signed-off|reviewed|acked|tested|reported|suggested|helped|approved|requested"
    r"|mentored)-by:[ \t]*)(?P<name>[^<\n]{1,100})(?P<address><[^\n]*)?$",
    re.MULTILINE | re.IGNORECASE,
)
_LONGEST_NAME = 100
_FIRST_WORD = re.compile(rf"(?<![\w@./-])(?=(\S{{1,{_LONGEST_NAME}}})\s)")
_AFTER_NAME = re.compile(r"(?![\w@/-]|\.\w)")
_CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)  # in which @ makes decorators, not mentions
_MENTION = re.compile(r"(?<![\w@/`.])@(?P<login>[A-Za-z\d](?:[A-Za-z\d-]{0,37}[A-Za-z\d])?)(?![\w@/(-]|\.\w)")


def holds_credential(text: str) -> bool:
    """Whether a text holds a key or a token of one of the well-known kinds."""
    return _CREDENTIAL.search(text) is not None


class FullNames:
    """Names of two words or more, found in a text in time that does not grow with their number."""

    def __init__(self, people: Iterable[str]) -> None:
        self._names = {person for person in people if len(person.split()) > 1 and len(person) <= _LONGEST_NAME}
        self._lengths: dict[str, set[int]] = {}
        for name in self._names:
            self._lengths.setdefault(name.split(maxsplit=1)[0], set()).add(len(name))

    def replaced(self, text: str, name: Callable[[str], str]) -> str:
        """The text with `name(person)` where a person is named; of several that begin at one place, the longest."""
        parts, at = [], 0
        for match in _FIRST_WORD.finditer(text) if self._names else ():
            start = match.start()
            for length in sorted(self._lengths.get(match[1], ()), reverse=True) if start >= at else ():
                person = text[start : start + length]
                if person in self._names and _AFTER_NAME.match(text, start + length):
                    parts += [text[at:start], name(person)]
                    at = start + length
                    break
        return "".join([*parts, text[at:]])


class Anonymizer:
    """Cleans what was said about one change. Pseudonyms are username_0, username_1, ... in the order of appearance.

    People are replaced where they are mentioned (@login), where a trailer ("Co-authored-by: ...") names them, and, with
    a name of two words or more, wherever they stand. With `pseudonyms` off names stay.
    """

    def __init__(self, change: Change, pseudonyms: bool = True) -> None:
        self._pseudonyms = pseudonyms
        self._names: dict[str, str] = {}
        self._num_people = 0
        authors = {commit.author for commit in change.own_commits}
        if pseudonyms and change.conversation and len(authors) == 1:  # who opened it under a login is who wrote it
            self._names[authors.pop().casefold()] = self.name(change.conversation.author)
        for person in _people(change) if pseudonyms else ():
            self.name(person)
        self._full = FullNames(_people(change) if pseudonyms else ())

    def name(self, person: str) -> str:
        """How a person is called here."""
        if not self._pseudonyms or not person:
            return person
        if person.casefold() not in self._names:
            self._names[person.casefold()] = f"username_{self._num_people}"
            self._num_people += 1
        return self._names[person.casefold()]

    def attributed(self, person: str, text: str) -> str:
        """A line, or more, that a person says."""
        return f"{self.name(person)}: {self.scrub(text).strip()}".rstrip()

    def scrub(self, text: str) -> str:
        """A text without names, addresses and credentials; line ends are line feeds."""
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        if self._pseudonyms:
            text = TRAILER.sub(lambda match: match["key"] + self.name(match["name"].strip()), text)
            text = self._full.replaced(text, self.name)
            parts = _CODE.split(text)
            parts[::2] = [_MENTION.sub(lambda match: "@" + self.name(match["login"]), part) for part in parts[::2]]
            text = "".join(parts)
        text = _LOGIN_IN_ADDRESS.sub("<credential>", text)
        return _CREDENTIAL.sub("<credential>", _EMAIL.sub("<email>", text))


def _people(change: Change) -> Iterator[str]:
    """Who takes part: logins and names, and those that trailers name with an address."""
    said = [change.body, *(commit.message for commit in change.commits)]
    if conversation := change.conversation:
        yield conversation.author
        yield from (event.author for event in conversation.events if not event.bot)
        yield from (issue.author for issue in conversation.issues)
        said += [*(event.text for event in conversation.events), *(issue.body for issue in conversation.issues)]
    yield from (commit.author for commit in change.commits)
    for text in said:
        trailers = TRAILER.finditer(text.replace("\r\n", "\n"))
        yield from (match["name"].strip() for match in trailers if match["address"])
