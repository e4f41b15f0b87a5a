"""A repository's files as a tree to read, small enough for a prompt."""

import itertools
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from data_prep.sources.git_command import GitClone
from data_prep.sources.git_graph import NotReplayable

MOST_LINES = 1_500
_MOST_NAMES = 200_000  # remembered at a time: memory must not grow with the history
_MOST_LEVELS = 100  # of folders: a computer made what has more
_FOLDER_MODE = b"40000"


@dataclass
class Folder:
    """A tree of git: names of its files, and its folders by name.

    One that occurs in many places is one object, and is counted and shown once: a few trees can stand for millions.
    """

    files: list[str]
    folders: dict[str, "Folder"]
    _shown: dict[int, str] = field(default_factory=dict, repr=False)
    _num_lines: dict[int, int] = field(default_factory=dict, repr=False)

    @cached_property
    def num_files(self) -> int:
        """Files here and below."""
        return len(self.files) + sum(folder.num_files for folder in self.folders.values())

    def shown(self, depth: int) -> str:
        """An indented tree, folders below `depth` levels as the number of their files."""
        if depth not in self._shown:
            entries = [(f"{name}\n", name) for name in self.files]
            for name, folder in self.folders.items():
                inside = folder.shown(depth - 1) if depth else ""
                line = f"{name}/\n" if depth else f"{name}/ ({folder.num_files} files)\n"
                entries.append((line + "".join(f"  {each}\n" for each in inside.split("\n")[:-1]), f"{name}/"))
            self._shown[depth] = "".join(text for text, _ in sorted(entries, key=lambda entry: entry[1]))
        return self._shown[depth]

    def num_lines(self, depth: int) -> int:
        """How many lines `shown` gives."""
        if depth not in self._num_lines:
            below = sum(folder.num_lines(depth - 1) for folder in self.folders.values()) if depth else 0
            self._num_lines[depth] = len(self.files) + len(self.folders) + below
        return self._num_lines[depth]

    @cached_property
    def height(self) -> int:
        """How many levels of folders there are."""
        return max((1 + folder.height for folder in self.folders.values()), default=0)


class Structures:
    """The structure of versions of one clone. A folder that did not change is read once."""

    def __init__(self, git: GitClone) -> None:
        self._git = git
        self._roots: dict[str, Folder] = {}
        self._folders: dict[str, Folder] = {}
        self._num_names = 0

    def of(self, commit: str) -> str:
        """The tree of a version, see `structure_of`. Raises MissingObjects where the clone lacks it."""
        if commit not in self._roots:
            self.prefetch([commit])
        return structure_of(self._roots[commit])

    def prefetch(self, commits: Iterable[str]) -> None:
        """Read the trees of several versions together: each question alone would wait for its answer.

        Raises MissingObjects where the clone lacks one, or NotReplayable where one is deeper than any project's, and
        then remembers none of them.
        """
        if self._num_names > _MOST_NAMES:
            self._folders, self._num_names = {}, 0
        wanted = list(dict.fromkeys(commits))
        roots, read = dict[str, Folder](), dict[str, Folder]()
        below: list[tuple[Folder, str, str]] = []
        for commit, content in zip(wanted, self._git.trees([f"{each}^{{tree}}" for each in wanted]), strict=True):
            roots[commit], inside = _folder(content, len(commit) // 2)
            below += inside
        for level in itertools.count():
            if not below:
                break
            if level == _MOST_LEVELS:
                raise NotReplayable("folders_too_deep")
            unknown = [tree for _, _, tree in below if tree not in self._folders and tree not in read]
            unknown, deeper = list(dict.fromkeys(unknown)), list[tuple[Folder, str, str]]()
            for tree, content in zip(unknown, self._git.trees(unknown), strict=True):
                read[tree], inside = _folder(content, len(tree) // 2)
                deeper += inside
            for folder, name, tree in below:
                folder.folders[name] = read.get(tree) or self._folders[tree]
            below = deeper
        self._roots = roots
        self._folders |= read
        self._num_names += sum(len(folder.files) + len(folder.folders) for folder in read.values())


def _folder(content: bytes, id_bytes: int) -> tuple[Folder, list[tuple[Folder, str, str]]]:
    """A folder out of a tree object (mode, name, NUL, id of each entry), and what lies in it: folder, name, tree."""
    folder, inside = Folder([], {}), []
    at = 0
    while at < len(content):
        end = content.index(b"\0", at)
        mode, _, raw_name = content[at:end].partition(b" ")
        at = end + 1 + id_bytes
        name = raw_name.decode(errors="replace")
        name = sys.intern(name if name.isprintable() else ascii(name)[1:-1])
        if mode == _FOLDER_MODE:
            inside.append((folder, name, content[end + 1 : at].hex()))
        else:
            folder.files.append(name)
    return folder, inside


def structure_of(root: Folder, most_lines: int = MOST_LINES) -> str:
    """A tree of at most so many lines, unless its top has more: the deepest levels are counted instead of shown.

    What a change touches has no part in that.
    """
    depth = root.height
    while depth and root.num_lines(depth) > most_lines:
        depth -= 1
    return root.shown(depth)
