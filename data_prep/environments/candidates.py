"""Tasks that recorded changes could become: a merged pull request that changes code, and tests that tell of it.

What landed is taken, and not what the branch held: of a merge the difference to its first parent. Each change ends as a
candidate or with a reason.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from data_prep.changes.record import Change
from data_prep.environments.checkout import without_conversion
from data_prep.environments.patches import PatchPart, paths_of, split_patch
from data_prep.environments.paths import is_test, is_test_module
from data_prep.environments.task import Task, is_text, patch_text
from data_prep.io.errors import InputError
from data_prep.samples.filters import MAX_PYTHON_FILES, reject_general
from data_prep.sources.git_reader import GitReader

_NO_CODE = frozenset({"setup.py", "noxfile.py", "conf.py", "tasks.py", "fabfile.py"})
_NO_CODE_FOLDERS = frozenset({"docs", "doc", "examples", "scripts", "benchmarks"})
_RELEASE = re.compile(r"\d+(\.\d+)+((\.|-)?(dev|a|b|rc|post)\d*)?$")
_MAX_PATCH = 4 << 20


class NoCandidate(Exception):
    """A change, or a row, cannot become a task; the message is the reason, one of a small set."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.detail = detail


class History:
    """A clone, as far as tasks need it. Close it."""

    def __init__(self, clone: Path) -> None:
        self.reader = GitReader(clone)
        without_conversion(self.reader.directory)
        self._merges: dict[str, tuple[str, str]] = {}
        for line in self._lines("rev-list", "--first-parent", "--merges", "--parents", "HEAD"):
            merge, first, *others = line.split(" ")
            self._merges |= dict.fromkeys(others, (first, merge))

    def _lines(self, *arguments: str) -> list[str]:
        found = self.reader.git(*arguments)
        return found.stdout.decode(errors="replace").splitlines() if found.returncode == 0 else []

    def ends_of(self, change: Change) -> tuple[str, str]:
        """The commits before and after a change. Raises NoCandidate where the clone lacks them."""
        base, head = change.base, change.head
        if change.kind == "merge":
            base, head = self._merges.get(change.head, (base, head))
        for commit in (base, head):
            if self.reader.git("cat-file", "-e", f"{commit}^{{commit}}").returncode:
                raise NoCandidate("not_in_clone")
        return base, head

    def difference(self, base: str, head: str) -> bytes:
        """All that changed, as a git patch without renames."""
        options = ("--binary", "--no-renames", "--full-index", "--no-ext-diff", "--no-textconv")
        found = self.reader.git("diff", *options, base, head)
        if found.returncode:
            raise NoCandidate("contents_missing")
        return found.stdout

    def date(self, commit: str) -> str:
        """When a commit was made, in ISO 8601."""
        return (self._lines("show", "-s", "--format=%cI", commit) or [""])[0]

    def release(self, commit: str) -> str:
        """The version that was last before a commit, by tags: a wrong one changes what is resolved."""
        tag = (self._lines("describe", "--tags", "--abbrev=0", commit) or [""])[0]
        found = _RELEASE.search(tag)
        return found[0] if found else "0.0.0"

    def content(self, commit: str, path: str) -> str:
        """Text of a file at a commit; empty where it is absent."""
        found = self.reader.git("show", f"{commit}:{path}")
        return found.stdout.decode(errors="replace") if found.returncode == 0 else ""


def candidate(change: Change, history: History) -> Task:
    """The task that a change could become, without what only runs can tell. Raises NoCandidate."""
    if reason := reject_general(change):
        raise NoCandidate(reason)
    base, head = history.ends_of(change)
    difference = history.difference(base, head)
    if len(difference) > _MAX_PATCH:
        raise NoCandidate("patch_too_large")
    if not is_text(difference):
        raise NoCandidate("patch_is_not_utf8")
    try:
        test_patch, patch = split_patch(difference, _is_of_tests)
    except InputError:
        raise NoCandidate("path_cannot_be_read") from None
    _check_code(patch)
    test_files = sorted(filter(is_test_module, paths_of(test_patch)))
    if not test_files:
        raise NoCandidate("no_test_module")
    if not any(_tells(history.content(base, path), history.content(head, path)) for path in test_files):
        raise NoCandidate("no_test_is_new_or_changed")
    number = change.number if change.number is not None else head[:12]
    return Task(
        instance_id=f"{change.repository.replace('/', '__')}-{number}",
        repo=change.repository,
        base_commit=base,
        head_commit=head,
        patch=patch_text(patch),
        test_patch=patch_text(test_patch),
        problem_statement=_problem(change),
        created_at=history.date(head),
        version=history.release(base),
        environment_setup_commit=base,
        test_files=tuple(test_files),
        license=" AND ".join(change.licenses),
        meta={"kind": change.kind},
    )


def _is_of_tests(part: PatchPart) -> bool:
    return any(map(is_test, part.paths))


def _check_code(patch: bytes) -> None:
    python = [path for path in paths_of(patch) if path.endswith(".py")]
    if not any(map(_is_code, python)):
        raise NoCandidate("no_python_code")
    if sum(map(_is_code, python)) > MAX_PYTHON_FILES:
        raise NoCandidate("too_many_python_files")


def _is_code(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return parts[-1] not in _NO_CODE and not _NO_CODE_FOLDERS.intersection(parts[:-1])


def _problem(change: Change) -> str:
    issues = change.conversation.issues if change.conversation else ()
    told = [f"{issue.title}\n\n{issue.body}" for issue in issues]
    return "\n\n".join(text.strip() for text in (*told, change.title, change.body) if text.strip())


def _tells(before: str, after: str) -> bool:
    """Whether a file of tests has functions that are new or do something else: none lost, none only annotated."""
    try:
        old, new = _functions(before), _functions(after)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return before != after  # of another Python
    return any(old.get(name) != body for name, body in new.items())


class _Bare(ast.NodeTransformer):
    """Leaves out what no run of a test depends on: annotations and words."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt:
        value = node.value if node.value is not None else ast.Constant(None)
        return ast.Assign([node.target], value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        node.returns = None
        if ast.get_docstring(node, clean=False) is not None and len(node.body) > 1:
            node.body = node.body[1:]
        return node


def _functions(text: str) -> dict[str, str]:
    """Name of each function, with the classes that it is in -> what it does."""
    return dict(_walk(_Bare().visit(ast.parse(text)), ""))


def _walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from _walk(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}{child.name}", ast.dump(child)
