"""A repository's files as a tree to read, small enough for a prompt."""

from collections.abc import Iterator
from dataclasses import dataclass

from data_prep.sources.git_command import GitClone

MOST_LINES = 1_500
_MAX_TREE_BYTES = 16 << 20
_FOLDER_MODE = b"40000"


@dataclass(frozen=True)
class Folder:
    """A tree of git: names of its files, its folders by name, and how many files it has in all."""

    files: tuple[str, ...]
    folders: tuple[tuple[str, "Folder"], ...]
    num_files: int

    def lines(self, depth: int) -> Iterator[str]:
        """An indented tree, folders below `depth` levels as the number of their files."""
        entries = [(f"{name}/", inside) for name, inside in self.folders] + [(name, None) for name in self.files]
        for name, inside in sorted(entries, key=lambda entry: entry[0]):
            if inside is None:
                yield name
            elif depth:
                yield name
                yield from (f"  {line}" for line in inside.lines(depth - 1))
            else:
                yield f"{name} ({inside.num_files} files)"

    def num_lines(self, depth: int) -> int:
        """How many lines `lines` gives."""
        below = sum(folder.num_lines(depth - 1) for _, folder in self.folders) if depth else 0
        return len(self.files) + len(self.folders) + below

    def height(self) -> int:
        """How many levels of folders there are."""
        return max((1 + folder.height() for _, folder in self.folders), default=0)


class Structures:
    """The structure of versions of one clone. A folder that did not change is read once."""

    def __init__(self, git: GitClone) -> None:
        self._git = git
        self._folders: dict[str, Folder] = {}

    def of(self, commit: str) -> str:
        """The tree of a version, see `structure_of`. Raises MissingObjects where the clone lacks it."""
        root = f"{commit}^{{tree}}"
        [content] = self._git.blobs([root], _MAX_TREE_BYTES).values()
        return structure_of(self._folder(content, len(commit) // 2))

    def _folder(self, content: bytes | None, id_bytes: int) -> Folder:
        files, trees = _entries(content or b"", id_bytes)
        unknown = [tree for tree in trees.values() if tree not in self._folders]
        for tree, inside in self._git.blobs(list(dict.fromkeys(unknown)), _MAX_TREE_BYTES).items():
            self._folders[tree] = self._folder(inside, id_bytes)
        folders = tuple((name, self._folders[tree]) for name, tree in trees.items())
        return Folder(tuple(files), folders, len(files) + sum(folder.num_files for _, folder in folders))


def _entries(content: bytes, id_bytes: int) -> tuple[list[str], dict[str, str]]:
    """Names of files, and name -> id of folders, out of a tree object: mode, name, NUL, id."""
    files, trees = [], {}
    at = 0
    while at < len(content):
        end = content.index(b"\0", at)
        mode, _, raw_name = content[at:end].partition(b" ")
        at = end + 1 + id_bytes
        name = raw_name.decode(errors="replace")
        name = name if name.isprintable() else ascii(name)[1:-1]
        if mode == _FOLDER_MODE:
            trees[name] = content[end + 1 : at].hex()
        else:
            files.append(name)
    return files, trees


def structure_of(root: Folder, most_lines: int = MOST_LINES) -> str:
    """A tree of at most so many lines, unless its top has more: the deepest levels are counted instead of shown.

    What a change touches has no part in that.
    """
    depth = root.height()
    while depth and root.num_lines(depth) > most_lines:
        depth -= 1
    return "".join(f"{line}\n" for line in root.lines(depth))
