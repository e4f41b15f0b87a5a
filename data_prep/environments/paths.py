"""What a path in a repository is for: tests, configuration of tests, names that hide the test runner."""

import re
import sys
from pathlib import PurePosixPath

_TEST_FOLDERS = frozenset({"test", "tests", "testing", "e2e"})
_TEST_FILE = re.compile(r"^(?:test_.*|.*_tests?|tests?|conftest)\.py$")
# Read by pytest or by the interpreter before any test.
_CONFIGURATION = frozenset(
    {
        "pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml", "tox.ini", "setup.cfg", "pyproject.toml",
        ".coveragerc",
    }
)  # fmt: skip
_IMPORTED_FIRST = frozenset({"conftest", "sitecustomize", "usercustomize", "egg-info", "__pycache__"})
_INSTALLED = (".dist-info", ".egg-info", ".egg")  # where entry points are found, which pytest loads
_RUNNER = frozenset(
    {"pytest", "_pytest", "pluggy", "iniconfig", "py", "exceptiongroup", "tomli", "packaging", "pygments", "colorama",
     "attr", "attrs", "six", "more_itertools", "importlib_metadata", "zipp", "davinci_report"}
)  # fmt: skip
_SOURCE_FOLDERS = frozenset({"src", "lib"})


def is_test(path: str) -> bool:
    """Whether a file belongs to a project's tests: by whole parts of its path, or by its name."""
    parts = PurePosixPath(path).parts
    return bool(_TEST_FOLDERS.intersection(parts[:-1])) or bool(_TEST_FILE.match(parts[-1]))


def is_test_module(path: str) -> bool:
    """Whether it is a file of tests itself, and no data or helper beside them."""
    return is_test(path) and path.endswith(".py") and PurePosixPath(path).name not in ("conftest.py", "__init__.py")


def is_configuration(path: str) -> bool:
    """Whether pytest or the interpreter reads it before any test."""
    parts = [part.lower() for part in PurePosixPath(path).parts]  # some file systems and importlib.metadata do not care
    if parts[-1] in _CONFIGURATION or parts[-1].endswith((".pth", ".egg-link")):
        return True
    return any(part.endswith(_INSTALLED) or part.partition(".")[0] in _IMPORTED_FIRST for part in parts)


def hides_runner(path: str) -> bool:
    """Whether a module there would be imported in place of the test runner's own, or of one of Python's."""
    parts = PurePosixPath(path).parts
    inner = parts[1:] if parts[0] in _SOURCE_FOLDERS and len(parts) > 1 else parts
    name, _, suffix = inner[0].partition(".")
    if len(inner) == 1 and suffix.rpartition(".")[2] not in ("py", "pyc", "so", "pyd", "abi3", "zip"):
        return False
    return name in _RUNNER or name in sys.stdlib_module_names
