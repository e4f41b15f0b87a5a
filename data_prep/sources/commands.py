"""Which programs a shell command runs, and what an agent reaches for with them."""

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath

Words = list[str]
_SEPARATORS = frozenset({";", "&", "&&", "|", "||", "|&", "(", ")", "{", "}", "!", "then", "do", "else", "if", "while"})
_BEFORE = frozenset({"sudo", "env", "time", "nohup", "exec", "command", "xargs", "timeout", "nice", "stdbuf"})
_ASSIGNMENT = re.compile(r"^\w+=")
_NUMBER = re.compile(r"^\d+(\.\d+)?[smh]?$")
_HISTORY = frozenset(
    {"log", "reflog", "show", "fsck", "rev-list", "cat-file", "blame", "stash", "fetch", "pull", "for-each-ref",
     "whatchanged", "shortlog", "bisect", "cherry-pick", "ls-remote", "fast-export"}
)  # fmt: skip
_FROM_NETWORK = frozenset({"clone", "fetch", "pull", "ls-remote", "submodule"})
_NETWORK = frozenset({"curl", "wget", "ssh", "scp", "rsync", "nc", "ncat", "telnet", "ftp", "apt", "apt-get", "conda"})
_INSTALLERS = {"pip": ("install", "download"), "pip3": ("install", "download"), "uv": ("pip", "add", "sync"),
               "npm": ("install", "i", "ci"), "gem": ("install",), "cargo": ("add", "install", "fetch"),
               "go": ("get", "install")}  # fmt: skip
_SHELLS = frozenset({"bash", "sh", "zsh", "dash"})
_SUBSTITUTED = re.compile(r"\$\(([^()`]*)\)|`([^`]*)`")
_HEREDOC = re.compile(r"(?<!<)<<-?\s*[\"']?(\w+)[\"']?(?!<)")
_MARK = re.compile(r"\\.|['\"]")
_LONGEST, _DEEPEST = 1 << 16, 3  # characters of a command that are read; shells within shells
_RUNNERS = frozenset({"pytest", "py.test", "tox", "nox", "nosetests", "runtests.py", "unittest"})


def programs(command: str, depth: int = 0) -> Iterator[Words]:
    """The programs of a command, each with its arguments, also those of shells and substitutions within it; of what
    cannot be parsed, the words.
    """
    for line in _logical_lines(command[:_LONGEST]):
        for words in _programs_of(line):
            yield words
            if depth < _DEEPEST and words[0] in _SHELLS and any(word.startswith("-") for word in words[1:2]):
                yield from programs(words[2] if len(words) > 2 else "", depth + 1)
        for inner in _SUBSTITUTED.findall(line) if depth < _DEEPEST else ():
            yield from programs(inner[0] or inner[1], depth + 1)


def _logical_lines(command: str) -> Iterator[str]:
    """Lines, of which one that opens a quotation lasts up to its end. The texts of here-documents are left out."""
    held, quote, ends = list[str](), "", list[str]()
    for line in command.split("\n"):
        if ends:
            if line.strip() == ends[0]:
                ends.pop(0)
            continue
        held.append(line)
        quote = _quote_after(line, quote)
        if not quote:
            whole = "\n".join(held)
            ends = _HEREDOC.findall(whole)
            yield whole
            held = []
    yield from held[:1]  # of a quotation without an end the rest is its text


def _quote_after(line: str, quote: str) -> str:
    """The quotation mark that is open at the end of a line, where `quote` was at its beginning."""
    for mark in _MARK.finditer(line):
        found = mark.group()
        if found in "'\"" and not quote:
            quote = found
        elif found == quote:
            quote = ""
    return quote


def _programs_of(line: str) -> Iterator[Words]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|()")
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:
        words = line.split()
    held: Words = []
    for word in [*words, ";"]:
        if word in _SEPARATORS or set(word) <= set(";&|()"):
            if found := _without_prefix(held):
                yield found
            held = []
        else:
            held.append(word)


def _without_prefix(words: Words) -> Words:
    """A program's words without variables and programs that run it."""
    place = 0
    while place < len(words) and (
        _ASSIGNMENT.match(words[place])
        or words[place] in _BEFORE
        or (place and (words[place].startswith("-") or _NUMBER.match(words[place])))
    ):
        place += 1
    return [PurePosixPath(words[place]).name, *words[place + 1 :]] if place < len(words) else []


def _subcommand(words: Words) -> str:
    """The first argument that is no option, nor the value of git's -C or -c."""
    place = 1
    while place < len(words) and words[place].startswith("-"):
        place += 2 if words[place] in ("-C", "-c", "--git-dir", "--work-tree") else 1
    return words[place] if place < len(words) else ""


def _reaches_for_history(words: Words) -> bool:
    return words[0] == "git" and _subcommand(words) in _HISTORY


def _reaches_for_network(words: Words) -> bool:
    if words[0].startswith("python") and words[1:3] == ["-m", "pip"]:
        words = words[2:]
    if words[0] == "git":
        return _subcommand(words) in _FROM_NETWORK
    return words[0] in _NETWORK or _subcommand(words) in _INSTALLERS.get(words[0], ())


COMMAND_RULES: Mapping[str, Callable[[Words], bool]] = {
    "history": _reaches_for_history,
    "network": _reaches_for_network,
}


def reaches_for(rule: str, command: str) -> bool:
    """Whether a command does what a rule names. `git log` and `git show` are history, `pip install` is network."""
    return any(COMMAND_RULES[rule](words) for words in programs(command))


def runs_tests(command: str) -> bool:
    """Whether a command runs tests, whose failing is a finding and no error."""
    return any(
        words[0] in _RUNNERS or (words[0].startswith("python") and not _RUNNERS.isdisjoint(map(_name, words[1:4])))
        for words in programs(command)
    )


def _name(word: str) -> str:
    return word.rpartition("/")[2]
